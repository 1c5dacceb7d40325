"""Two runs on one page: what differs is said, which way is better where that is known, and what cannot be compared."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from crawl2chat.comparison import comparison, difference, names, noise
from crawl2chat.runs import Run, Target, read_run
from test_report import Page, load_script
from tiny_run import STAGES, tiny_run, write

TARGETS = [
    Target("data/precision", "precision", at_least=0.97),
    Target("pretrain/eval_bits_per_byte", "bits per byte", at_most=1.6),
    Target("eval/sft/facts/accuracy", "facts", at_least=0.8),
    Target("total_seconds", "time", at_least=1, at_most=1000),
]


@pytest.fixture(autouse=True)
def sketched(monkeypatch):
    """Figures are drawn but not rendered, which takes seconds."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **how: file.write(b"<svg/>"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    first = tiny_run(tmp_path_factory.mktemp("first") / "laptop")
    return first, shutil.copytree(first, tmp_path_factory.mktemp("second") / "laptop")


@pytest.fixture
def pair(folders, tmp_path) -> tuple[Run, Run]:
    """Two runs, whose second one a test may change."""
    other = shutil.copytree(folders[1], tmp_path / "other" / "laptop")
    return replace(read_run(folders[0], STAGES), targets=TARGETS), read_run(other, STAGES)


def change(run: Run, stage: str, **numbers: float) -> Run:
    """The run again, with other numbers in a stage's metrics.json."""
    path = run.folder / stage / "metrics.json"
    write(path, {**json.loads(path.read_text()), **numbers})
    return read_run(run.folder, STAGES)


def text(html: str) -> str:
    return Page(html).shown().replace("\xa0", " ")


def test_a_run_beside_itself_differs_in_nothing(pair):
    html = comparison(*pair)
    shown = text(html)
    assert "better" not in shown and "worse" not in shown and "The same tokenizer." in shown
    assert not re.search(r"[1-9][\d,]* of [\d,]+ numbers differ", shown) and "Evaluated otherwise" not in shown


def test_better_and_worse_follow_the_targets_directions(pair):
    run, other = pair
    other = change(other, "data", precision=0.5)
    other = change(other, "pretrain", eval_bits_per_byte=1.2)
    shown = text(comparison(run, other))
    assert "precision99.1 % ✓50 % ✗+49.1 points▲ better" in shown
    assert "bits per byte1.31 ✓1.2 ✓+0.11▼ worse" in shown


def test_no_direction_is_named_where_a_target_has_two_bounds(pair):
    run, other = pair
    shown = text(comparison(run, change(other, "data", seconds=700.0)))
    row = shown[shown.index("time") :].partition("Curves")[0]
    assert "better" not in row and "worse" not in row and "−" in row


def test_a_difference_within_two_standard_errors_is_called_noise(pair):
    run, other = pair
    other = change(other, "eval", **{"sft/facts/accuracy": 0.85})
    assert "86 % ✓85 % ✓+1 points" in text(comparison(run, other)) and "within the noise" in text(
        comparison(run, other)
    )
    far = {"x/accuracy": 0.9, "x/stderr": 0.01}, {"x/accuracy": 0.5, "x/stderr": 0.01}
    assert noise(far, "x/accuracy") == "" and noise(far, "x/stderr") == ""


def test_every_number_of_both_runs_stands_there(pair):
    run, other = pair
    other = change(other, "sft", new_number=3.0)
    shown = text(comparison(run, other))
    for stage, metrics in run.metrics.items():
        assert all(f"{stage}/{key}" in shown for key in metrics)
    assert "sft/new_number–3" in shown and "sft: 1 of" in shown


def test_recipes_differ_line_by_line_and_stay_text(pair):
    run, other = pair
    path = other.folder / "sft" / "recipe.yaml"
    path.write_text(path.read_text() + "learning_rate: 1.0e-3 # <script>alert(1)</script>\n")
    html = comparison(run, other)
    assert "− learning_rate: 1.0e-3 # <script>" in text(html) and "<script" not in html
    assert "The same recipe: data, tokenizer" in text(html)


def test_another_tokenizer_and_other_questions_are_said(pair):
    run, other = pair
    for one, sha in ((run, "a"), (other, "b")):
        task = {"temperature": 0.0, "questions": 100, "prompts_sha256": sha}
        write(one.folder / "eval" / "settings.json", {"tasks": {"facts": task, "sums": {"temperature": 0.0}}})
    path = other.folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    shown = text(comparison(run, other))
    (run.folder / "eval" / "settings.json").unlink()
    assert "Another tokenizer: losses in nats a token are not comparable" in shown
    assert "Evaluated otherwise: other questions: facts." in shown


def test_stages_that_one_lacks_are_named_and_curves_need_both(pair):
    run, other = pair
    shutil.rmtree(other.folder / "sft")
    other = read_run(other.folder, STAGES)
    html = comparison(run, other)
    assert "Only A has sft." in text(html) and "loss on the assistant" not in html and "pretraining loss" in html
    alone = comparison(run, Run(other.folder, {"data": other.metrics["data"]}))
    Page(alone)
    assert not re.search(r"</h[23]>\s*(</section>|<h[23]>|</div>)", alone) and "Curves" not in alone


def test_runs_are_told_apart_by_as_much_of_their_paths_as_it_takes(tmp_path):
    one, two = (Run(tmp_path / name, {}) for name in ("a/laptop", "b/laptop"))
    assert names(one, two) == ("a/laptop", "b/laptop")
    assert names(one, Run(tmp_path / "c", {})) == ("laptop", "c")
    assert names(one, one) == (names(one, one)[0], f"{names(one, one)[0]} (the same folder)")


@pytest.mark.parametrize(
    "key, left, right, wanted",
    [("loss", 1.5, 1.25, "+0.25"), ("x/accuracy", 0.5, 0.75, "−25 points"), ("n", 3, 3, "="), ("n", None, 3, ""),
     ("x/share", 0.5, 0.50001, "≈"), ("total_seconds", 60, 30, "+30 s")],
)  # fmt: skip
def test_a_difference_is_said_in_the_numbers_own_unit(key, left, right, wanted):
    assert difference(key, left, right).replace("\xa0", " ") == wanted


def test_the_script_writes_the_comparison_beside_the_page(pair, tmp_path, capsys):
    run, other = pair
    script = load_script()
    out = tmp_path / "report"
    script.main(script.ReportConfig(str(run.folder), list(STAGES), str(out), TARGETS, str(other.folder)))
    assert "comparison.html" in capsys.readouterr().out
    html = (out / "comparison.html").read_text()
    assert "<script" not in html and "http" not in html.partition("Every number")[0] and (out / "index.html").exists()
