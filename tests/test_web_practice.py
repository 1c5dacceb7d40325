"""The pages about practice show what was written, run nothing that a model wrote, and leave out what a run lacks."""

import json
import math
import re
from pathlib import Path

import pytest

from crawl2chat import practice_figures
from crawl2chat.report import page
from crawl2chat.runs import Run, read_run
from crawl2chat.web.practice import practice
from tiny_run import finish, tiny_run, write

WAYS = ("rejection", "grpo")


def rounds() -> list[dict]:
    rows = []
    for i in range(4):
        share = 0.9 - 0.4 * 0.55**i
        row = {"round": i, "pass_at_1": share, "stderr": 0.02, "pass_at_k": min(share + 0.2, 1), "k": 15}
        row |= {"greedy": share + 0.05, "mean_length": 30 + 4 * i, "worked": 0.5 + 0.1 * i, "rollouts": 3000 * i}
        rows.append({**row, "seconds": 44.0 * i, "kept": 150 * i, "all_right": 20 * i, "all_wrong": 30 - 5 * i})
    return rows


def tries() -> list[dict]:
    texts = ["47 + 38 = 85.", "7 + 8 = 15, write 5, carry 1. 4 + 3 + 1 = 8. The answer is 85.", "75", "<b>85</b>"]
    several = [
        {"text": texts[i % 4] + " so" * (i % 7), "tokens": 5 + 9 * (i % 4), "score": (1.0, 1.0, 0.0, None)[i % 4]}
        for i in range(15)
    ]
    several = [{**one, "chosen": i == 4} for i, one in enumerate(several)]
    easy = [{"text": "2", "tokens": 1, "score": 1.0, "chosen": i == 0} for i in range(15)]
    messages = [{"role": "user", "content": "What is 47 + 38? <script>alert(1)</script>"}]
    return [
        {"round": 0, "prompt": "1 + 1?", "answer": "2", "rollouts": easy},
        {"round": 0, "prompt": messages, "answer": "85", "rollouts": several},
    ]


def curve() -> list[dict]:
    rows = []
    for step in range(0, 101, 10):
        far = 1 - math.exp(-step / 30)
        row = {"step": step, "seconds": 1.3 * step, "rollouts": 128 * step, "pass_at_1": 0.6 + 0.34 * far}
        row |= {"stderr": 0.02, "greedy": 0.78 + 0.2 * far, "mean_length": 29 + 17 * far, "worked": 0.58 + 0.4 * far}
        rows.append({**row, "strategies": {"wait": 0.0, "check": 0.0}})
    return rows


def log() -> list[dict]:
    rows = []
    for step in range(1, 101):
        far = 1 - math.exp(-step / 30)
        row = {
            "step": step,
            "reward": 0.6 + 0.3 * far,
            "rewards/correct/mean": 0.6 + 0.3 * far + 0.04 * math.sin(step),
        }
        row |= {"entropy": 0.9 - 0.6 * far, "frac_reward_zero_std": 0.2 + 0.5 * far}
        row |= {
            "completions/mean_length": 30 + 15 * far,
            "completions/max_length": 64,
            "completions/clipped_ratio": 0.1,
        }
        row |= {"rollout_seconds": 0.7, "reward_seconds": 0.02, "update_seconds": 0.5 + 0.1 * math.cos(step)}
        rows.append({**row, "alarms/entropy_collapse": 1.0} if step in (60, 65) else row)
    return [*rows, {"step": 100, "train_runtime": 130.0}]


def completions() -> list[dict]:
    row = {"prompt": "Add <i>1</i> and 2.", "completion": "<script>alert(2)</script> 3", "advantage": 0.71}
    return [{"step": step, **row, "rewards": {"correct": 1.0}} for step in range(1, 101, 5) for _ in range(10)]


@pytest.fixture(autouse=True)
def sketched(monkeypatch):
    """Figures are drawn but not rendered, which takes seconds."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **how: file.write(b"<svg/>"))


def write_practice(tmp_path: Path) -> None:
    write(tmp_path / "rejection" / "rounds.json", rounds())
    write(tmp_path / "rejection" / "rollouts.jsonl", tries())
    finish(tmp_path / "rejection", 140.0, 1.1, rounds=3, pass_at_1_first=0.5, pass_at_1_last=0.83)
    write(tmp_path / "grpo" / "curve.json", curve())
    write(tmp_path / "grpo" / "log_history.json", log())
    write(tmp_path / "grpo" / "completions.jsonl", completions())
    write(tmp_path / "grpo" / "teacher.json", {"teacher": 0.7, "sft": [[0, 0.1], [50, 0.6], [100, 0.69]]})
    finish(tmp_path / "grpo", 135.0, 1.3, pass_at_1_before=0.6, pass_at_1_after=0.93)


@pytest.fixture
def run(tmp_path) -> Run:
    write_practice(tmp_path)
    return read_run(tmp_path, WAYS)


def titles(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def shown(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).replace("\xa0", " ").replace("&nbsp;", " ")


def rewrite(run: Run, stage: str, name: str, change) -> None:
    path = run.folder / stage / name
    write(path, change(json.loads(path.read_text())))


def test_a_run_that_practised_has_every_section(run):
    html = practice(run)
    assert titles(html) == [
        "Thinking, discovered",
        "Beyond the teacher",
        "Two ways to practise",
        "Many tries at one problem",
        "How the practice went",
    ]
    assert html.count('class="fig"') == 3 + 1 + 2 + 6


def test_a_run_without_practice_has_no_section(tmp_path):
    tiny_run(tmp_path, ("data",))
    assert practice(read_run(tmp_path, ("data", *WAYS))) == ""


@pytest.mark.parametrize(
    "stage, name, title",
    [
        ("grpo", "curve.json", "Thinking, discovered"),
        ("grpo", "teacher.json", "Beyond the teacher"),
        ("rejection", "rounds.json", "Two ways to practise"),
        ("rejection", "rollouts.jsonl", "Many tries at one problem"),
    ],
)
def test_what_was_not_written_is_left_out(run, stage, name, title):
    everything = titles(practice(run))
    (run.folder / stage / name).unlink()
    assert titles(practice(run)) == [other for other in everything if other != title]


def test_the_report_shows_practice_after_thinking(tmp_path, run):
    tiny_run(tmp_path, ("eval",))
    html = page(read_run(tmp_path, ("eval", *WAYS)))
    names = titles(html)
    assert names.index("It uses tools") + 1 == names.index("Thinking, discovered")
    assert html.encode() and "<script" not in html


def test_the_reward_is_called_the_right_answer_alone_only_where_it_was(run):
    claim = "The reward is for the right answer alone"
    assert claim in practice(run)
    rewrite(run, "grpo", "log_history.json", lambda rows: [{**row, "rewards/short/mean": 0.2} for row in rows])
    html = practice(run)
    assert claim not in html and "It is rewarded by: correct, short." in html
    (run.folder / "grpo" / "log_history.json").unlink()
    assert claim not in practice(run) and "rewarded by" not in practice(run)


def test_that_thinking_grew_is_said_only_where_it_did(run):
    assert "replies grow longer and that more of them show their work is what" in practice(run)
    rewrite(run, "grpo", "curve.json", lambda rows: [{**row, "mean_length": 30, "worked": None} for row in rows])
    html = practice(run)
    assert "right answer alone" in html and "is what the model found" not in html


def test_the_problem_that_is_shown_has_right_and_wrong_tries(run):
    html = practice(run)
    cards = re.findall(r'<div class="try ([a-z ]+)">', html)
    assert len(cards) == 15 and cards.count("right chosen") == 1
    assert {"right", "wrong", "none"} < set(cards)
    assert "answered 15 times: 8 right" in html and "? no verdict" in html


def test_what_a_model_wrote_is_shown_and_not_run(run):
    html = practice(run)
    assert "<script" not in html and "<b>85" not in html and "<i>1" not in html
    assert "&lt;script&gt;alert(1)" in html and "&lt;script&gt;alert(2)" in html and "&lt;b&gt;85" in html


def test_alarms_are_named_with_their_steps(run):
    assert "Alarms: entropy collapse at steps 60, 65." in shown(practice(run))
    rewrite(run, "grpo", "log_history.json", lambda rows: [{**row, "alarms/entropy_collapse": 0.0} for row in rows])
    assert "No alarm was raised." in practice(run)


def test_completions_are_folded_by_step_and_counted(run):
    html = practice(run)
    assert html.count("<details>") == 6 and "step 1<" in html and "step 96<" in html
    assert "48 of 200 logged completions" in html


def test_numbers_before_and_after_are_those_of_the_curve(run):
    text = shown(practice(run))
    assert "right answers, drawn 60 % ± 2.0 92.8 % ± 2.0" in text and "after 100 steps" in text
    assert "tokens a reply 29 45.4" in text and "12,800 rollouts, 130 seconds." in text


def drawn(monkeypatch) -> list:
    """The figures that are made from now on."""
    figures = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, file, **how: figures.append(figure) or file.write(b"<svg/>")
    )
    return figures


def test_words_of_strategy_have_a_panel_only_where_some_are_used(monkeypatch):
    figures = drawn(monkeypatch)
    practice_figures.discovered(curve())
    assert len(figures) == 3
    rows = [{**row, "strategies": {"wait": row["step"] / 50, "check": 0.0}} for row in curve()]
    practice_figures.discovered(rows)
    last = figures[-1].axes[-1]
    assert len(figures) == 7 and [line.get_label() for line in last.lines] == ["wait"]


def test_what_is_logged_has_a_panel_and_alarms_go_through_all_of_them(monkeypatch):
    figures = drawn(monkeypatch)
    practice_figures.vitals(log())
    several = [figure.axes[0] for figure in figures]
    titles = [axes.get_title("left") for axes in several]
    assert len(titles) == 6 and titles[0] == "rewards, mean of a step" and titles[-1] == "seconds a step"
    dashed = [[line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] for axes in several]
    assert dashed == [[60, 65]] * 6
    labels = several[-1].get_legend_handles_labels()[1]
    assert [label.split()[0] for label in labels] == ["rollout", "reward", "update"]


def test_a_measure_that_a_run_lacks_has_no_panel(monkeypatch):
    figures = drawn(monkeypatch)
    practice_figures.discovered([{**row, "worked": None, "greedy": None} for row in curve()])
    assert [figure.axes[0].get_title("left") for figure in figures] == [
        "right answers to held-out problems",
        "length of a reply, tokens",
    ]


def test_practice_goes_on_where_the_teachers_pupil_stopped(run, monkeypatch):
    asked = []
    monkeypatch.setattr(practice_figures, "beyond_the_teacher", lambda *points: asked.append(points) or "<p></p>")
    practice(run)
    ((teacher, sft, rl),) = asked
    assert teacher == 0.7 and sft[-1] == (100, 0.69) and rl[0] == (100, 0.6) and rl[-1][0] == 200


def test_a_log_with_numbers_that_are_none_is_drawn(run):
    rewrite(run, "grpo", "log_history.json", lambda rows: [{**row, "entropy": float("nan")} for row in rows])
    rewrite(run, "grpo", "curve.json", lambda rows: [{**row, "stderr": None, "mean_length": None} for row in rows])
    assert len(titles(practice(run))) == 5
