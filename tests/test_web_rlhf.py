"""The pages about RLHF show what was ordered, scored and written, run none of it, and leave out what a run lacks."""

import json
import math
import re
from pathlib import Path

import pytest

from crawl2chat.report import page
from crawl2chat.runs import Run, read_run
from crawl2chat.web.rlhf import at_time, number, rlhf
from tiny_run import assistant, finish, tiny_run, user, write

STAGES = ("preferences", "reward", "ppo", "ppo-rloo", "ppo-grpo", "overoptimization")
TEXTS = ("A pelican <b>flew</b>\nby the sea.", "It sat.", "The the the.", "<script>alert(1)</script>", "")
TITLES = ["Preferences", "A reward model", "PPO", "PPO, RLOO and GRPO", "Over-optimization"]


def write_preferences(folder: Path) -> None:
    rows = [
        {"prompt": [user(f"Write two lines about {animal}.")], "replies": [f"{text}{end}" for text in TEXTS],
         "split": split, "task": "verse", "order": [3, 0, 1, 2, 4], "labeler": "simulated, noise 0.03, seed 0 <i>"}
        for animal, split, end in (("a rat", "train", ""), ("an owl", "test", "!"), ("a pelican <u>", "test", ""))
    ]  # fmt: skip
    write(folder / "rankings.jsonl", rows)
    finish(folder, 15.0, 1.0, prompts=3, pairs=3000, pairs_test=600, flipped=0.0668, flipped_neighbours=0.14)


def write_reward(folder: Path) -> None:
    texts, rows = [TEXTS[i] for i in (3, 0, 1, 2, 4)], []
    scores = [1.5, 2.25, 0.5, -1.25, -1.5]  # the first two the other way round
    for i in range(5):
        for k in range(i + 1, 5):
            sides = {"chosen": [assistant(texts[i])], "rejected": [assistant(texts[k])]}
            rows.append({"prompt": [user("Write two lines about a pelican <u>.")], **sides, "rank_distance": k - i,
                         "score_chosen": scores[i], "score_rejected": scores[k]})  # fmt: skip
    write(folder / "scores.jsonl", rows)
    bins = [{"from": 0.5 + i / 20, "to": 0.55 + i / 20, "pairs": 60 - i, "confidence": 0.52 + i / 20,
             "accuracy": min(0.5 + i / 19, 1.0)} for i in range(10)]  # fmt: skip
    write(folder / "calibration.json", {"expected_calibration_error": 0.03, "by_chance": 0.04, "bins": bins})
    kinds = {"chosen": (1.1, 0.5), "empty": (-1.8, 0.0), "repeated_word": (-1.6, 0.02), "made <up>": (0.1, 0.3)}
    write(folder / "degenerate.json", [{"kind": kind, "score": score, "beats_chosen": beats, "text": "<i>the the"}
                                       for kind, (score, beats) in kinds.items()])  # fmt: skip
    numbers = {"accuracy": 0.767, "stderr": 0.023, "length_baseline_accuracy": 0.605, "accuracy_ceiling": 0.933}
    finish(folder, 27.0, 1.7, **numbers)


def write_ppo(folder: Path, speed: float = 1.0) -> None:
    rows = [{"step": 20 * i, "episodes": 640 * i, "seconds": 15.0 * i / speed, "kl": 6 * (1 - math.exp(-i / 2)),
             "proxy": 1.9 * (1 - math.exp(-i / 2)), "gold": 0.21 + 0.23 * speed * (1 - math.exp(-i / 3)),
             "length": 24 + i / 3} for i in range(7)]  # fmt: skip
    write(folder / "curve.json", rows)
    log = [{"step": step, "objective/kl_coef": 0.05, "reward": 1.0} for step in range(4, 121, 4)]
    log[9]["alarms/repeated"] = log[11]["alarms/repeated"] = 1.0
    write(folder / "log_history.json", log)
    sides = {"before": {"text": "The <b>rat</b>.", "proxy": 0.4, "gold": 0.07},
             "after": {"text": "<script>alert(2)</script> sang.", "proxy": 2.0, "gold": 0.575}}  # fmt: skip
    asked = ("an owl", "a rat", "a pelican", "a horse <u>", "a llama", "a second pelican")
    write(folder / "held_out.jsonl", [{"prompt": f"Two lines about {animal}.", **sides} for animal in asked])
    numbers = {"gold_before": 0.213, "gold_after": 0.43, "gold_p_value": 1e-05, "win_rate": 0.8188}
    numbers |= {"win_rate_low": 0.7675, "win_rate_high": 0.8663, "proxy_before": -0.003, "proxy_after": 1.9}
    numbers |= {"length_before": 23.3, "length_after": 25.9, "ended_before": 1.0, "ended_after": 1.0}
    finish(folder, 102.2, 4.0, **numbers, kl=5.48, episodes=3840, episodes_per_second=41.1 * speed)


def hacked(name: str, label: str, alpha: float, beta: float) -> dict:
    """A run whose gold reward is 0.21 + d (alpha - beta log d), and falls in the end."""
    points = []
    for i in range(25):
        d = 0.37 * i
        gold = 0.21 + (d * (alpha - beta * math.log(d)) if d else 0) + 0.02 * math.sin(7 * i)
        points.append({"step": 20 * i, "episodes": 640 * i, "kl": d * d, "proxy": 1.9 * math.tanh(d / 3) + 0.05 * d,
                       "gold": gold, "gold_stderr": 0.02})  # fmt: skip
    fit = {"proxy": {"alpha": 0.75, "beta": 0.2, "r2": 0.97}, "gold": {"alpha": alpha, "beta": beta, "r2": 0.93}}
    kl = math.exp(2 * (alpha / beta - 1))
    turning = {"kl": kl, "gold": 0.21 + beta * math.sqrt(kl), "step": 180, "of": "fit"}
    stopped = {
        "name": "drift",
        "step": 140,
        "kl": 0.7 * kl,
        "gold": 0.44,
        "why": "the <proxy> rose, who looks on fell",
    }
    text = "gold gold gold <script>alert(3)</script>" + " gold" * 300
    texts = [{"prompt": "Two lines about a pelican.", "text": text, "proxy": 3.1, "gold": 0.02}]
    return {"name": name, "label": label, "points": points, "fit": fit, "turning": turning, "alarms": [stopped],
            "stopped": {**stopped, "kept": {"step": 120, "kl": 4.0, "gold": 0.46}}, "texts": texts}  # fmt: skip


def curves() -> dict:
    chosen = []
    for n in (1, 2, 4, 8, 16, 32, 64):
        kl = math.log(n) - (n - 1) / n
        row = {"n": n, "kl": kl, "proxy": 1.1 * math.sqrt(kl), "gold": 0.21 + 0.17 * math.sqrt(kl) - 0.02 * kl}
        chosen.append({**row, "stderr": 0.015})
    fit = {"proxy": {"alpha": 1.1, "beta": 0.0, "r2": 1.0}, "gold": {"alpha": 0.17, "beta": 0.02, "r2": 1.0}}
    several = [hacked("no_leash", "no <leash>", 0.2, 0.095), hacked("ensemble", "the least of three", 0.2, 0.08)]
    several[1] |= {"turning": None, "stopped": None, "fit": None}
    return {"runs": several, "best_of_n": {"points": chosen, "fit": fit}, "form": "d(alpha - beta log d)"}


def write_overoptimization(folder: Path) -> None:
    write(folder / "curves.json", curves())
    finish(folder, 60.0, 1.5, runs=2)


def write_run(folder: Path, stages: tuple[str, ...] = STAGES) -> Path:
    for stage in stages:
        how = {"ppo-rloo": {"speed": 1.3}, "ppo-grpo": {"speed": 0.8}}.get(stage, {})
        globals()[f"write_{stage.partition('-')[0]}"](folder / stage, **how)
    return folder


@pytest.fixture(autouse=True)
def figures(monkeypatch) -> list:
    """Figures are drawn and kept, but not rendered, which takes seconds."""
    kept = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, file, **how: kept.append(figure) or file.write(b"<svg/>")
    )
    return kept


@pytest.fixture
def run(tmp_path) -> Run:
    return read_run(write_run(tmp_path), STAGES)


def titles(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def shown(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).replace("\xa0", " ").replace("&nbsp;", " ")


def rewrite(run: Run, stage: str, name: str, change) -> None:
    path = run.folder / stage / name
    write(path, change(json.loads(path.read_text())))


def part(html: str, title: str) -> str:
    return next(piece for piece in html.split("<section ")[1:] if f"<h2>{title}</h2>" in piece)


def test_a_run_with_every_stage_has_every_section(run):
    html = rlhf(run)
    assert titles(html) == TITLES
    assert html.count('class="fig"') == 2 + 3 + 1 + 2 + 2


def test_a_run_without_rlhf_has_no_section(tmp_path):
    tiny_run(tmp_path, ("data",))
    assert rlhf(read_run(tmp_path, ("data", *STAGES))) == ""


@pytest.mark.parametrize("stage", STAGES)
def test_a_skipped_stage_leaves_nothing_empty(tmp_path, stage):
    html = rlhf(read_run(write_run(tmp_path, tuple(one for one in STAGES if one != stage)), STAGES))
    gone = {"preferences": 0, "reward": 1, "overoptimization": 4}.get(stage)
    wanted = [title for i, title in enumerate(TITLES) if i != gone]
    wanted = [{"ppo-rloo": "PPO and GRPO", "ppo-grpo": "PPO and RLOO", "ppo": "RLOO and GRPO"}.get(stage, title)
              if title == TITLES[3] else title for title in wanted]  # fmt: skip
    assert titles(html) == wanted
    assert not re.search(r"</h[23]>\s*(</section>|<h[23]>|</div>)", html) and "<table></table>" not in html


def test_metrics_alone_are_enough(run):
    for path in run.folder.rglob("*"):
        if path.is_file() and path.name != "metrics.json":
            path.unlink()
    html = rlhf(run)
    assert titles(html) == TITLES[:3] and "<svg" not in html


def test_the_report_shows_rlhf_after_practice_and_a_number_for_each_stage(tmp_path):
    write_run(tiny_run(tmp_path, ("eval",)))
    html = page(read_run(tmp_path, ("eval", *STAGES)))
    names = titles(html)
    assert names.index("It uses tools") + 1 == names.index("Preferences")
    strip = shown(html.partition('<ol class="strip">')[2].partition("</ol>")[0])
    assert "preferences 3,000 pairs" in strip and "reward 76.7 % of pairs right" in strip
    assert "ppo-grpo 3,840 episodes" in strip and "overoptimization 2 runs" in strip


def test_what_a_model_wrote_is_shown_and_not_run(run):
    html = rlhf(run)
    for tag in ("<script", "<b>flew", "<b>rat", "<u>", "<i>the", "<leash", "<proxy", "<up>", "seed 0 <i>"):
        assert tag not in html
    assert "&lt;script&gt;alert(1)" in html and "&lt;script&gt;alert(2)" in html and "&lt;script&gt;alert(3)" in html


def test_a_held_out_pelicans_replies_stand_in_the_labelers_order(run):
    text = shown(part(rlhf(run), "Preferences"))
    assert "Write two lines about a pelican &lt;u&gt;. 1 &lt;script&gt;alert(1)&lt;/script&gt; 2 A pelican" in text
    assert "5 (nothing)" in text and "an owl" not in text
    assert "prompts 3, of them 2 held out" in text and "6.7 % of all pairs, 14 % of neighbours" in text


def test_the_sum_is_that_of_what_was_ordered(run):
    assert "1,000,000,000 scores. Here 3 prompts with 5 replies each were put in order" in shown(rlhf(run))


def test_the_reward_models_places_stand_beside_the_labelers(run):
    html = part(rlhf(run), "A reward model")
    text = shown(html)
    assert "scores +1.50, place 2" in text and "scores +2.25, place 1" in text and "scores −1.50, place 5" in text
    assert html.count("scored wrong") == 2 and html.count("scored right") == 3
    assert "reward 76.7 % ± 2.3 of held-out pairs" in text and "labeler 93.3 %" in text and "length 60.5 %" in text


def test_accuracy_by_distance_is_counted_from_the_pairs(run, figures):
    rlhf(run)
    bars = [patch.get_height() for patch in figures[0].axes[0].patches]
    assert bars == [0.75, 1, 1, 1] and figures[1].axes[0].get_title("left") == "how often right, by how sure it is"


def test_degenerate_texts_have_their_scores(run):
    text = shown(part(rlhf(run), "A reward model"))
    assert "one word again and again &lt;i&gt;the the −1.60 2 %" in text and "nothing at all" in text


def test_before_and_after_come_with_p_value_and_win_rate(run):
    text = shown(part(rlhf(run), "PPO"))
    assert "gold reward 0.213 0.430 0.00001" in text and "0.00 1.90" in text
    assert "81.9 % of comparisons" in text and "76.8 to 86.6 %" in text
    assert "3,840 episodes, 102 seconds, 5.5 nats" in text and "on a leash" in text


def test_a_pelican_comes_first_and_then_other_prompts(run):
    asked = re.findall(r"<b>Two lines about (.*?)\.</b>", rlhf(run))
    assert asked == ["a pelican", "an owl", "a rat"]


def test_a_run_without_a_leash_is_not_said_to_have_one(run):
    rewrite(run, "ppo", "log_history.json", lambda rows: [{**row, "objective/kl_coef": 0.0} for row in rows])
    text = shown(part(rlhf(run), "PPO"))
    assert "without a leash" in text and "on a leash" not in text


def test_alarms_are_named_with_their_steps(run):
    assert "Alarms: repeated at steps 40, 48." in shown(rlhf(run))
    rewrite(run, "ppo", "log_history.json", lambda rows: [{**row, "alarms/repeated": 0.0} for row in rows])
    assert "Alarms" not in rlhf(run)


def test_ways_to_learn_are_compared_where_the_fastest_one_ended(run):
    text = shown(part(rlhf(run), "PPO, RLOO and GRPO"))
    at = [0.21 + 0.23 * speed * (1 - math.exp(-i / 3)) for speed, i in ((1.3, 6),)]
    assert "gold at 69 s" in text and f"RLOO {at[0]:.2f}" in text and "PPO 0.3" in text


def test_a_value_between_two_points_is_on_their_line():
    points = [(0.0, 1.0), (10.0, 2.0), (20.0, 0.0)]
    assert at_time(points, 5) == 1.5 and at_time(points, 20) == 0 and at_time(points, 21) is None
    assert at_time([], 1) is None


def test_one_way_alone_is_compared_with_nothing(tmp_path):
    html = rlhf(read_run(write_run(tmp_path, ("ppo",)), STAGES))
    assert titles(html) == ["PPO"]


def test_turning_points_and_where_the_stop_rule_stopped_are_marked(run, figures):
    text = shown(part(rlhf(run), "Over-optimization"))
    proxy, gold = ([line.get_marker() for line in figure.axes[0].lines] for figure in figures[-4:-2])
    assert gold.count("D") == gold.count("X") == 1 and "D" not in proxy
    assert "no &lt;leash&gt;" in text and "◆ gold turns ✖ the stop rule ends it" in text
    assert "then the gold reward, which the proxy stands for, falls" in text
    assert (
        "alarms: drift at step 140. The stop rule would end it at step 140: drift (the &lt;proxy&gt; rose" in text
        and "0.46 at 4.0" in text
    )


def test_nothing_is_said_to_turn_where_no_run_turned(run):
    straight = [{**one, "turning": None, "stopped": None} for one in curves()["runs"]]
    rewrite(run, "overoptimization", "curves.json", lambda all: {**all, "runs": straight})
    text = shown(part(rlhf(run), "Over-optimization"))
    assert "falls" not in text and "would end it" not in text


def test_best_of_n_stands_beside_ppo_at_the_same_kl(run):
    html = part(rlhf(run), "Over-optimization")
    text = shown(html)
    assert "gold so far away, PPO on its leash" in text and "64 3.17" in text
    row = shown(html.partition('<td class="n">64</td>')[2].partition("</tr>")[0]).split()
    assert all(re.fullmatch(r"0\.\d{3}", cell) for cell in row[-3:])


def test_the_top_text_is_quoted_and_clipped(run):
    text = shown(part(rlhf(run), "Over-optimization"))
    assert text.count("gold gold gold &lt;script") == 2 and "proxy 3.10, gold 0.02" in text
    assert text.count(" gold") < 200


@pytest.mark.parametrize("kept", ["runs", "best_of_n"])
def test_either_half_of_the_curves_is_enough(run, kept):
    rewrite(run, "overoptimization", "curves.json", lambda all: {kept: all[kept]})
    assert "Over-optimization" in titles(rlhf(run))


def test_numbers_that_are_none_are_left_out_or_drawn_around(run):
    def broken(rows: list[dict]) -> list[dict]:
        return [{**row, "gold": None if i % 2 else float("nan"), "kl": row["kl"]} for i, row in enumerate(rows)]

    for stage in ("ppo", "ppo-rloo", "ppo-grpo"):
        rewrite(run, stage, "curve.json", broken)
    html = rlhf(run)
    assert titles(html) == TITLES and "proxy at 69 s" in html and "nan" not in shown(html)


def test_a_run_of_an_unknown_gold_reward_has_a_page(run):
    for stage in ("ppo", "ppo-rloo", "ppo-grpo"):
        rewrite(run, stage, "curve.json", lambda rows: [{k: v for k, v in row.items() if k != "gold"} for row in rows])
    (run.folder / "ppo/metrics.json").write_text(json.dumps({"proxy_before": 0.0, "proxy_after": 1.0, "seconds": 3}))
    html = rlhf(read_run(run.folder, STAGES))
    assert "win" not in shown(part(html, "PPO")) and "gold reward 0" not in shown(html)


def test_a_number_is_text_and_nothing_where_there_is_none():
    assert number(-0.001) == "0.00" and number(-1.5) == "−1.50" and number(None) == number(float("nan")) == ""
