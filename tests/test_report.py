"""The page shows what the run wrote and nothing more, runs nothing that a model wrote, and needs no other file."""

import gzip
import importlib.util
import json
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from crawl2chat.figures import heat
from crawl2chat.recollection import CLOSED, by_seen
from crawl2chat.recollection import numbers as recollection_numbers
from crawl2chat.report import page
from crawl2chat.runs import Run, Target, all_numbers, read_run
from test_web_chat import chromium as chromium
from test_web_practice import write_practice
from test_web_rlhf import STAGES as RLHF
from test_web_rlhf import write_run
from tiny_run import STAGES, finish, tiny_run, write

ROOT = Path(__file__).resolve().parents[1]
VOID = {"meta", "img", "br", "source", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that what opens also closes."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.links, self.text, self.open = [], [], [], []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def shown(self) -> str:
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def sketched(monkeypatch):
    """Figures are drawn but not rendered, which takes seconds; those of `html` are rendered."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **how: file.write(b"<svg/>"))


@pytest.fixture(scope="module")
def html(folder) -> str:
    return page(read_run(folder, STAGES), [Target("data/precision", "precision", at_least=0.97)])


def test_every_stage_of_the_lifecycle_has_its_section(html):
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "Numbers to reach",
        "From crawl to clean text",
        "Text into tokens",
        "Learning to predict the next token",
        "The dream sharpens",
        "One token at a time",
        "What it remembers, and what a prompt makes of it",
        "Conversations to learn from",
        "Supervised finetuning",
        "Knowing what it does not know",
        "Vague recollection and working memory",
        "Knowledge of self",
        "Tokens to think",
        "What a token hides",
        "It uses tools",
        "A map of what it can do",
        "In its own words",
        "Time and memory",
        "To make it again",
    ]


def test_the_page_stands_alone_and_is_small(html):
    found = Page(html)
    assert "script" not in found.tags and "iframe" not in found.tags
    assert all(link.startswith("#") for link in found.links)
    assert "@import" not in html and not re.search(r"url\((?!#)", html) and "xmlns" not in html
    assert len(html.encode()) < 5_000_000


def test_what_a_model_or_a_page_wrote_is_shown_and_not_run(html):
    assert "<script" not in html and "<b>giraffe" not in html
    text = Page(html).shown()
    assert "<script>alert('a page')</script>" in text and "Spell <b>giraffe</b>." in text
    assert "Lyon & the <b>south</b>." in text and "of a made-up run <&>" in text


def test_what_the_base_model_recites_translates_and_answers_is_shown(html):
    text = Page(html).shown().replace("\xa0", " ")
    assert "Recall grows with repetition" in html and "held out80 %1.2" in text
    assert "- cheese =>" in text and "examples, words that stand on no page" in text
    assert "Right: 45 % with these turns, 2 % after" in text and "It is Lima." in text
    assert "Costa Rica is a <i>" not in html and "<i> country" not in html


def test_a_sample_stage_that_only_continued_prompts_has_no_psychology(tmp_path):
    folder = tiny_run(tmp_path)
    path = folder / "sample" / "samples.json"
    samples = json.loads(path.read_text())
    for key in ("temperatures", "recall", "translation", "assistant"):
        del samples[key]
    path.write_text(json.dumps(samples))
    html = page(read_run(folder, STAGES))
    assert "One token at a time" in html and "What it remembers" not in html


def test_half_a_character_in_a_reply_breaks_nothing(tmp_path):
    folder = tiny_run(tmp_path)
    path = folder / "eval" / "replies.jsonl"
    path.write_text(path.read_text().replace("Tokyo", "\\ud800"))
    assert "In its own words" in page(read_run(folder, STAGES)).encode("utf-8").decode()


def test_figures_follow_the_colour_scheme(html):
    assert html.count('class="fig"') >= 5 and html.count('class="fig"') == html.count("<svg")
    defined = set(re.findall(r"(--[\w-]+):", html[: html.index("</style>")]))
    for figure in re.findall(r"<svg.*?</svg>", html):
        colours = re.findall(r"(?:fill|stroke|color): ?([^;\"]+)", figure)
        assert colours and {colour for colour in colours if not colour.startswith("var(")} <= {"none"}
        assert {colour[4:-1] for colour in colours if colour.startswith("var(")} <= defined


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_and_curves_stand_out_from_their_ground(html, scheme):
    style = html[html.index("<style>") : html.index("</style>")].partition("\n.tokens")[0]
    colours: dict[str, list[str]] = {}
    for name, colour in re.findall(r"--([\w-]+): (#[0-9a-f]{6})", style):
        colours.setdefault(name, []).append(colour)
    assert all(len(pair) == 2 for pair in colours.values()), "a colour each, for light and for dark"
    grounds = [colours[name][scheme] for name in ("card", "page")]
    words = ["ink", "quiet", "accent", "pass", "short", *(f"c{i}" for i in range(1, 9))]
    for name in words:
        assert all(contrast(colours[name][scheme], ground) >= 4.5 for ground in grounds), name
    for name, ground in (("on", "right"), ("on", "wrong"), ("on-pale", "rightly"), ("on-pale", "wrongly")):
        assert contrast(colours[name][scheme], colours[ground][scheme]) >= 4.5, (name, ground)


def contrast(one: str, other: str) -> float:
    """Between two colours, as the web's accessibility guidelines define it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("stage", STAGES)
def test_a_skipped_stage_leaves_nothing_empty(tmp_path, stage):
    run = read_run(tiny_run(tmp_path, tuple(s for s in STAGES if s != stage)), STAGES)
    html = page(run)
    Page(html)
    assert stage not in run.metrics
    assert not re.search(r"</h[23]>\s*(</section>|<h[23]>|</div>)", html)


EVERY = (*STAGES, "rejection", "grpo", *RLHF, "arena", "release")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """A run with every stage that there is."""
    folder = tiny_run(tmp_path_factory.mktemp("whole"))
    write_practice(folder)
    write_run(folder)
    dropped = {"step": "c4", "reason": "lorem_ipsum", "url": "https://example.com/<u>", "start": "Lorem <script>"}
    path = folder / "data" / "rejected" / "c4-00000.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress((json.dumps(dropped) + "\n").encode()))
    files = {"model.safetensors": {"sha256": "ab" * 32, "bytes": 17}, "<b>.json": {"sha256": "cd" * 32, "bytes": 3}}
    write(folder / "release" / "manifest.json", {"files": files})
    (folder / "release" / "gguf").mkdir()
    for name in ("gguf/tiny-f16.gguf", "Modelfile"):
        (folder / "release" / name).touch()
    proof = {"token_ids_equal": 1.0, "gguf_greedy_equal": 0.95, "gguf_logprob_largest_difference": 0.0123}
    finish(folder / "release", 20.0, 0.8, files=14, bytes=43_500_000, **proof)
    ratings = {"rating/sft": 40.0, "rating/base": -40.0, "win_rate/sft/base": 0.61, "win_rate/base/sft": 0.39}
    finish(folder / "arena", 9.0, 0.7, battles=200, players=2, **ratings)
    return read_run(folder, EVERY)


@pytest.mark.parametrize("seed", range(14))
def test_whatever_stages_are_skipped_nothing_is_empty_and_every_link_leads_somewhere(whole, seed):
    rng = random.Random(seed)
    kept = EVERY if seed == 0 else sorted(rng.sample(EVERY, rng.randint(1, len(EVERY))), key=EVERY.index)
    html = page(Run(whole.folder, {stage: whole.metrics[stage] for stage in kept}))
    found = Page(html)
    assert not re.search(r"</h[123]>\s*(</section>|<h[23]>|</div>|</header>)", html)
    assert "<table></table>" not in html and not re.search(
        r'<div class="part"[^>]*>[^<]*</div>\s*(<div class="part"|<footer)', html
    )
    anchors = re.findall(r' id="([^"]+)"', html)
    assert len(anchors) == len(set(anchors)) and {link[1:] for link in found.links} <= set(anchors)
    assert len(html.encode()) < 5_000_000 and "<script" not in html


@pytest.mark.parametrize("stage", EVERY)
def test_a_run_of_one_stage_alone_has_a_page(whole, stage):
    html = page(Run(whole.folder, {stage: whole.metrics[stage]}))
    assert re.findall(r"<h2>(.*?)</h2>", html)[-2:] == ["Time and memory", "To make it again"]
    assert not re.search(r"</h[23]>\s*(</section>|<h[23]>|</div>)", html)


def side_files() -> list[str]:
    """Side files of the stages that the report reads, as <stage>/<name>."""
    names = (
        "data/funnel.json tokenizer/ladder.json pretrain/log_history.json pretrain/samples.jsonl sample/samples.json "
    )
    names += "interrogate/replies.jsonl interrogate/facts.jsonl sft/log_history.json eval/replies.jsonl "
    names += (
        "rejection/rounds.json rejection/rollouts.jsonl grpo/curve.json grpo/log_history.json grpo/completions.jsonl "
    )
    names += "grpo/teacher.json preferences/rankings.jsonl reward/scores.jsonl reward/calibration.json "
    names += "reward/degenerate.json ppo/curve.json ppo/log_history.json ppo/held_out.jsonl "
    return (names + "overoptimization/curves.json release/manifest.json").split()


@pytest.mark.parametrize("name", side_files())
def test_a_side_file_that_is_not_as_its_stage_writes_it_is_one_clear_line_or_left_out(whole, tmp_path, name):
    stage, file = name.split("/")
    assert (whole.folder / name).exists(), "the whole run has it"
    folder = tmp_path / "run"
    shutil.copytree(whole.folder / stage, folder / stage)
    path = folder / stage / file
    text = path.read_text(encoding="utf-8")
    numbers = re.sub(r"(?<=[:\[ ])-?\d+\.\d+", "NaN", text)
    for broken in (
        numbers,
        "[]",
        "{}",
        "null",
        "3",
        '"words"',
        "[null]",
        '[{"step": null}]',
        text[: len(text) // 2],
        "",
    ):
        path.write_text(broken, encoding="utf-8")
        try:
            html = page(Run(folder, {stage: whole.metrics[stage]}))
        except SystemExit as stop:
            assert str(folder) in stop.code and "\n" not in stop.code and "again" in stop.code, broken[:40]
        else:
            Page(html)
            assert "width:nan" not in html and not re.search(r"</h[23]>\s*(</section>|<h[23]>|</div>)", html)


WORDS = {"text", "prompt", "continued", "said", "answer", "content", "why", "reply", "completion", "label", "texts"}


def swollen(value: object, key: str = "") -> object:
    """A side file's content with every text of people or models 200,000 characters long."""
    if isinstance(value, dict):
        return {name: swollen(child, name) for name, child in value.items()}
    if isinstance(value, list):
        return [swollen(child, key) for child in value]
    return value + "<script>" + "la " * 66_000 if isinstance(value, str) and key in WORDS else value


@pytest.mark.parametrize("name", side_files())
def test_texts_of_any_length_leave_the_page_small(whole, tmp_path, name):
    stage, file = name.split("/")
    folder = tmp_path / "run"
    shutil.copytree(whole.folder / stage, folder / stage)
    path = folder / stage / file
    if file.endswith(".jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()[:40]
        path.write_text("".join(json.dumps(swollen(json.loads(line))) + "\n" for line in lines))
    else:
        path.write_text(json.dumps(swollen(json.loads(path.read_text(encoding="utf-8")))))
    html = page(Run(folder, {stage: whole.metrics[stage]}))
    assert len(html) < 200_000 and "<script" not in html


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_metric_that_is_no_number_is_one_clear_line(tmp_path, number):
    folder = tiny_run(tmp_path, ("data",))
    (folder / "data" / "metrics.json").write_text(f'{{"precision": {number}, "seconds": 3}}')
    with pytest.raises(SystemExit, match="precision is -?(nan|inf), no finite number; run the stage data again"):
        read_run(folder, ("data",))


def test_a_stage_that_is_still_running_is_left_out(tmp_path):
    folder = tiny_run(tmp_path, ("data", "pretrain"))
    (folder / "pretrain" / "metrics.json").unlink()
    (folder / "pretrain" / "log_history.json").write_text('[{"step": 5, "lo')
    assert "Learning to predict" not in page(read_run(folder, STAGES))


def test_task_names_and_labels_of_any_kind_are_drawn_as_text(tmp_path, monkeypatch):
    monkeypatch.undo()
    folder = tiny_run(tmp_path, ("pretrain",))
    rows = [
        {"step": s, "loss": 2.0, "eval_bits_per_byte": 1.0, "eval_bits_per_byte_<script>$x$\ud800&": 1.5}
        for s in (1, 2)
    ]
    (folder / "pretrain" / "log_history.json").write_text(json.dumps(rows))
    html = page(read_run(folder, STAGES))
    Page(html)
    assert "<script" not in html and "&lt;script&gt;$x$?&amp;" in html


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_the_page_opens_from_disk_on_a_phone_without_network_or_sideways_scrolling(
    whole, chromium, tmp_path, scheme
):
    path, asked, said = tmp_path / "index.html", [], []
    path.write_text(page(whole, [Target("data/precision", "precision " + "x" * 90, at_least=0.97)]))
    context = chromium.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    tab = context.new_page()
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(path.as_uri())
    wide = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    assert tab.evaluate(wide) <= 360 and asked == [path.as_uri()] and said == []
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.evaluate(wide) <= 360
    tab.locator("nav a", has_text="Human feedback").click()
    tab.wait_for_function("Math.abs(document.querySelector(location.hash).getBoundingClientRect().top) < 120")
    assert tab.evaluate("document.querySelector('nav').getBoundingClientRect().top") == 0, "the contents stay in sight"
    context.close()


def test_the_release_says_what_it_proves_and_how_to_run_it(whole):
    text = Page(page(whole)).shown().replace("\xa0", " ")
    assert "100 %of texts have the same token ids" in text and "95 %of greedy replies are the same" in text
    assert "43.5 MB" in text and "differ by at most 0.0123 nats" in text and "<b>.json3cdcd" in text
    for program in ("llama-cli -m", "ollama create", "lmstudio", "scripts/chat.py", "from_pretrained"):
        assert program in text


def test_what_was_dropped_is_quoted(whole):
    html = page(whole)
    assert "c4: lorem ipsum" in html and "Lorem &lt;script&gt;" in html and "example.com/&lt;u&gt;" in html


def test_each_section_says_its_stage_and_time(html):
    assert '<small class="made">data, 61\xa0s</small><h2>From crawl to clean text</h2>' in html


def test_conversations_without_any_tokenizer_have_no_mask_view(tmp_path):
    html = page(read_run(tiny_run(tmp_path, ("data", "conversations")), STAGES))
    assert "Conversations to learn from" in html and "What bears loss" not in html


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    titles = re.findall(r"<h2>(.*?)</h2>", page(read_run(tiny_run(tmp_path, ("data",)), STAGES)))
    assert titles == ["From crawl to clean text", "Time and memory", "To make it again"]


def test_a_metrics_file_alone_is_enough(tmp_path):
    folder = tiny_run(tmp_path)
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("metrics.json",):
            path.unlink()
    assert "A map of what it can do" in page(read_run(folder, STAGES))


def test_targets_are_marked_as_reached_or_short(folder):
    run = read_run(folder, STAGES)
    low = Target("pretrain/eval_bits_per_byte", "bits", at_most=1.6)
    share = Target("interrogate/invented_wrong_after", "invented", at_most=0.2)
    high = Target("eval/sft/facts_pages_only/accuracy", "facts", at_least=0.5)
    missing = Target("grpo/accuracy", "practice", at_least=0.5)
    text = Page(page(run, [low, share, high, missing])).shown()
    assert "bits1.31✓ reached≤ 1.6" in text.replace("\xa0", " ").replace(" ✓ ", "✓ ").replace("reached ", "reached")
    assert "invented4 %" in text.replace("\xa0", " ") and "≤ 20 %" in text.replace("\xa0", " ")
    assert "✗ short" in text and "practice" not in text


def test_the_worst_holes_come_first_with_a_failing_example(html):
    text = Page(html).shown().replace("\xa0", " ")
    first, second = text.index("addition direct: 89 % wrong"), text.index("spelling: 65 % wrong")
    assert first < second
    assert "answered91rightis85" in text.replace(" ", "")


def test_tool_calls_are_part_of_the_examples(html):
    text = Page(html).shown()
    assert "calls search" in text and "Ada Lovelace born" in text and "731 * 442" in text


def test_report_json_holds_every_number_and_the_sums(folder):
    run = read_run(folder, STAGES)
    numbers = all_numbers(run)
    assert numbers["data/precision"] == 0.991 and numbers["eval/sft/facts/accuracy"] == 0.86
    assert numbers["total_seconds"] == pytest.approx(sum(m["seconds"] for m in run.metrics.values()))
    assert numbers["peak_memory_gb"] == 2.4
    assert len(numbers) == 2 + 4 + 4 * 5 + sum(map(len, run.metrics.values()))  # after, and five times seen


def test_what_the_interrogation_found_after_stands_beside_what_it_found_before(folder):
    numbers = all_numbers(read_run(folder, STAGES))
    assert numbers["interrogate/invented_wrong_before"] == 1.0
    assert numbers["interrogate/invented_wrong_after"] == numbers["eval/interrogate/invented_wrong_after"] == 0.04


def test_recollection_grows_with_the_times_seen_and_working_memory_does_not(folder):
    numbers = all_numbers(read_run(folder, STAGES))
    closed, search, refused = (
        [numbers[f"recollection/{key}_{seen}"] for seen in (0, 1, 4, 16, 64)]
        for key in ("closed", "search", "refused")
    )
    assert closed == [0, 0.1, 0.3, 0.7, 0.9] and search == [0.9, 0.9, 1, 0.9, 1]
    assert refused == pytest.approx([0.8, 0.6, 0.4, 0.1, 0])
    assert numbers["recollection/unasked_0"] == 0.1 and numbers["recollection/unasked_1"] == 0


def test_replies_that_no_grader_could_judge_are_left_out_of_the_curve():
    row = {"checkpoint": "sft", "task": CLOSED, "reply": [{"role": "assistant", "content": "1901"}]}
    rows = [{**row, "seen": seen, "score": score} for seen, score in ((1, None), (4, 1.0), (4, None), (4, 0.0))]
    assert list(by_seen(rows)) == [4] and by_seen(rows)[4]["accuracy"] == 0.5
    assert recollection_numbers(rows[:1]) == recollection_numbers([]) == {}


def test_the_invented_person_comes_first_and_the_worst_before_the_rest(html):
    text = Page(html[html.index("<h3>The same questions") :].partition("<h3>What the interrogation")[0]).shown()
    order = [text.index(words) for words in ("Orson Kovacs", "Vera Itoh", "Peru", "Emil Gruber", "Tilda Szabo")]
    assert order == sorted(order)
    first = text[order[0] : order[1]]
    assert "✗ wrongAn American <i>rower</i>" in first and "✓ rightly refusedI'm sorry" in first
    assert "✗ wrong(calls search: Ada Lovelace born)" in text[order[3] : order[4]]
    assert "✗ wrongly refused" in text[order[2] : order[3]] and "South America" in text


def test_before_and_after_stand_side_by_side_in_numbers(html):
    text = Page(html).shown().replace("\xa0", " ")
    assert "invented names it tells of100 %4 %" in text and "known facts it answers rightly79 %81 %" in text


def test_an_interrogation_that_no_eval_followed_shows_what_was_before(tmp_path):
    html = page(read_run(tiny_run(tmp_path, ("data", "interrogate")), STAGES))
    text = Page(html).shown().replace("\xa0", " ")
    assert "invented names it tells of100 %" in text and "rower" in text and "Vague recollection" not in text


def test_each_manner_answers_the_introductions_two_problems(html):
    text = Page(html[html.index('id="tokens-to-think"') - 9 :].partition("</section>")[0] + "</section>").shown()
    assert text.count("Emily buys 3 apples and 2 oranges.") == 1 and "(total $869" not in text
    for manner in ("at once", "in steps", "with Python"):
        assert text.count(f"{manner} ✓") + text.count(f"{manner} ✗") == 2
    assert "at once ✗ 3 tokensThe answer is 4." in text and "with Python ✓ 27 tokenscalls python" in text


def test_who_it_is_is_told_apart_by_system_message_and_by_leading_question(html):
    text = Page(html).shown().replace("\xa0", " ")
    assert "a leading question, no system message0 %100 %1" in text
    assert "You are Pelican & co." in text and "base said: Yes, I am ChatGPT." in text


def test_the_map_is_coloured_from_dark_to_light_and_its_words_stay_legible():
    shares = [i / 20 for i in range(21)]
    light = [[luminance(colour) for colour in heat(share)] for share in shares]
    assert all(low[0] < high[0] for low, high in zip(light, light[1:], strict=False))
    assert all((max(pair) + 0.05) / (min(pair) + 0.05) > 4.5 for pair in light)


def luminance(colour: str) -> float:
    """Relative luminance, as the web's accessibility guidelines define it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_a_megabyte_of_anything_in_a_reply_is_clipped_and_escaped(tmp_path, html):
    folder, bomb = tiny_run(tmp_path), "<script>" + "la" * 500_000 + "\ud800</td></table>"
    for path in (folder / "interrogate" / "replies.jsonl", folder / "eval" / "replies.jsonl"):
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
        for task in ("invented", "known", "recollection_closed", "apples_steps", "identity", "facts"):
            for row in [row for row in rows if row["task"] == task][-1:]:
                row["reply"] = bomb if isinstance(row["reply"], str) else [{"role": "assistant", "content": bomb}]
        write(path, rows)
    big = page(read_run(folder, STAGES))
    Page(big)
    assert "<script" not in big and "&lt;script&gt;" in big and len(big) < len(html) + 100_000


@pytest.mark.parametrize(
    "file, text, complaint",
    [
        ("data/metrics.json", "{", "not JSON"),
        ("data/metrics.json", '{"a": {"b": 1}}', "not a flat object of numbers"),
        ("data/funnel.json", "[", "not JSON"),
        ("eval/replies.jsonl", '{"checkpoint": "sft"', "line 1: not JSON"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path, file, text, complaint):
    folder = tiny_run(tmp_path)
    (folder / file).write_text(text)
    with pytest.raises(SystemExit) as stop:
        page(read_run(folder, STAGES))
    assert file in stop.value.code and complaint in stop.value.code and "\n" not in stop.value.code


def test_no_stage_at_all_is_one_clear_line(tmp_path):
    with pytest.raises(SystemExit, match="no stage has written a metrics.json"):
        read_run(tmp_path, STAGES)


def load_script():
    spec = importlib.util.spec_from_file_location("report_script", ROOT / "scripts" / "report.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_script_writes_page_and_numbers_and_says_where(folder, tmp_path, capsys):
    script = load_script()
    shutil.copytree(folder, tmp_path / "run")
    target = Target("data/precision", "precision", at_least=0.97)
    script.main(
        script.ReportConfig(str(tmp_path / "run"), [*STAGES, "grpo"], str(tmp_path / "run" / "report"), [target])
    )
    out = capsys.readouterr().out
    assert (
        str(tmp_path / "run" / "report" / "index.html") in out and "left out, for want of a metrics.json: grpo" in out
    )
    numbers = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert numbers["sft/train_loss"] == 0.213
    assert json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())["targets_reached"] == 1
