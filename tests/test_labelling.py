"""Conversations from the labelling instructions: the file decides, the judge's word drops, and no reply is lost."""

import json
import random
from pathlib import Path

import pytest

from crawl2chat import endpoint as endpoint_module
from crawl2chat.data.shards import documents
from crawl2chat.endpoint import Endpoint
from crawl2chat.labelling import Labelling, find_json, label, read_instructions, read_prompts, read_verdict, seeds
from crawl2chat.tasks.facts import in_conversations
from endpoint_server import KEY, Played, completion, serving

FILE = Path(__file__).parents[1] / "recipes/labelling_instructions.md"
VERDICT = '{"mark": 5, "reasons": []}'


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def instructions():
    return read_instructions(FILE)


def role(request: dict) -> str:
    system = request["messages"][0]["content"]
    if "You are the judge" in system:
        return "judge"
    return "answers" if "Reply with the ideal answer alone" in system else "prompts"


def player(judge=lambda number, request: VERDICT):
    """Writes five prompts a request, answers each, and judges as told."""

    def play(number: int, request: dict):
        match role(request):
            case "prompts":
                mark = random.Random(json.dumps(request)).randrange(10**6)
                return json.dumps([f"Question {mark}-{i}?" for i in range(5)])
            case "answers":
                return f"The answer to {request['messages'][1]['content']} is seven."
        return judge(number, request)

    return play


def config(server, **knobs) -> Labelling:
    knobs = {"rows": 20, "topics": ["rivers", "cooking"], "instructions": str(FILE), **knobs}
    return Labelling(Endpoint(server.url, "m", retries=1), **knobs)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_instructions_say_what_the_code_reads_from_them(instructions):
    assert len(instructions.kinds) >= 5
    assert set(instructions.reasons) >= {"false", "made_up", "harmful", "refuses_needlessly", "form"}
    assert instructions.fatal == {"false", "made_up", "harmful"} and instructions.worst_kept == 4


def test_the_instructions_obey_themselves(instructions):
    text = instructions.sections["Worked examples"]
    assert text.count("**Prompt:**") == text.count("**Answer:**") == text.count("Marks 5.") >= 5
    assert "Orson Kovacs" in text


@pytest.mark.parametrize("lacking", ["## Form", "- `false`:", "at any mark", "- A question about"])
def test_a_file_that_lacks_a_part_is_one_line_that_names_it(tmp_path, lacking):
    text = FILE.read_text()
    if lacking.startswith("- "):
        text = text.replace("\n- ", "\n* ")
    (tmp_path / "i.md").write_text(text.replace(lacking, "## Other" if lacking.startswith("##") else "always"))
    with pytest.raises(SystemExit, match=r"i\.md") as stop:
        read_instructions(tmp_path / "i.md")
    assert "\n" not in str(stop.value)


def test_good_answers_become_rows_with_marks_and_every_section_was_told(tmp_path, instructions):
    with serving(player()) as server:
        metrics = label(config(server), tmp_path, seed=0)
    rows = rows_of(tmp_path / "labelled/train.jsonl")
    assert len(rows) == 20 == metrics["labelling/kept"] and metrics["labelling/mean_mark"] == 5
    for row in rows:
        assert set(row) == {"messages", "task", "marks", "reasons"} and (row["task"], row["marks"]) == ("labelled", 5)
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert row["messages"][0]["content"] in row["messages"][1]["content"]
    told = {role(request): request["messages"][0]["content"] for request in server.requests}
    assert instructions.sections["What a prompt may be"] in told["prompts"]
    assert instructions.sections["When these pull apart"] in told["answers"]
    assert all(section in told["judge"] for section in instructions.sections.values())
    assert len(rows_of(tmp_path / "labelled/answers.jsonl")) == len(server.requests) == 4 + 20 + 20


@pytest.mark.parametrize(
    "verdict, reason",
    [
        ('{"mark": 5, "reasons": ["made_up"]}', "made_up"),
        ('{"mark": 3, "reasons": ["form"]}', "form"),
        ('{"mark": 2, "reasons": []}', "low_mark"),
        ('{"mark": 4, "reasons": ["form", "harmful"]}', "harmful"),
        ("I like it.", "unjudged"),
    ],
)
def test_what_the_judge_faults_is_dropped_with_its_reason(tmp_path, verdict, reason):
    def judge(number, request):
        return verdict if "-2?" in request["messages"][1]["content"] else VERDICT

    with serving(player(judge)) as server:
        metrics = label(config(server), tmp_path, seed=0)
    dropped = rows_of(tmp_path / "labelled/dropped.jsonl")
    assert metrics[f"labelling/dropped/{reason}"] == 4 == len(dropped) and metrics["labelling/kept"] == 16
    assert all(row["reason"] == reason and "-2?" in row["conversation"][0]["content"] for row in dropped)
    with pytest.raises(SystemExit, match="no key 'messages'"):  # no mixture learns from them
        list(documents(tmp_path / "labelled/dropped.jsonl", ("messages",)))


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "5",
        "[]",
        '{"mark": 6, "reasons": []}',
        '{"mark": true, "reasons": []}',
        '{"mark": "5", "reasons": []}',
        '{"mark": 4.5, "reasons": []}',
        '{"mark": 5}',
        '{"mark": 5, "reasons": "form"}',
        '{"mark": 5, "reasons": ["lovely"]}',
        '{"mark": 5, "reasons": [{}]}',
        '{"mark": 5, "reasons": []} or {"mark": 1, "reasons": []}',
        '{"mark": 5, "reasons": [',
        "{" * 5000,
    ],
    ids=lambda reply: reply[:40],
)
def test_a_verdict_that_is_none_is_refused(instructions, reply):
    with pytest.raises(ValueError):
        read_verdict(reply, instructions)


@pytest.mark.parametrize(
    "around", ["{}", "```json\n{}\n```", "Here: {} Good luck!", '<think>{{"mark": 1}}</think>{}', "{0} Again: {0}"]
)
def test_words_around_a_verdict_do_no_harm(instructions, around):
    assert read_verdict(around.format('{"mark": 4, "reasons": ["form"]}'), instructions) == (4, ["form"])


def test_prompts_are_a_list_of_texts_or_nothing():
    assert read_prompts('Sure:\n["a [b]?", " c "]') == ["a [b]?", "c"]
    for reply in ("1. a\n2. b", "[]", '["a", 3]', '["a", ""]', json.dumps(["x" * 5000])):
        with pytest.raises(ValueError):
            read_prompts(reply)
    assert find_json('{"a": {"b": 1}}', dict) == {"a": {"b": 1}}


def test_nonsense_is_asked_for_once_more_and_then_counted(tmp_path, capsys):
    def judge(number, request):
        if len(request["messages"]) > 2:  # the second time
            return VERDICT if "-1?" in request["messages"][1]["content"] else "still no JSON"
        return "hm" if any(f"-{i}?" in request["messages"][1]["content"] for i in (0, 1)) else VERDICT

    with serving(player(judge)) as server:
        metrics = label(config(server), tmp_path, seed=0)
    assert metrics["labelling/dropped/unjudged"] == 4 and metrics["labelling/kept"] == 16
    assert len(server.requests) == 4 + 20 + 20 + 8
    assert "8 replies could not be read, 4 after a second try" in capsys.readouterr().out


@pytest.mark.parametrize("verdict, why", [("no", "20 unjudged"), ('{"mark": 1, "reasons": ["form"]}', "20 form")])
def test_a_judge_that_never_agrees_is_one_line_and_the_work_is_kept(tmp_path, verdict, why):
    with serving(player(lambda number, request: verdict)) as server:
        with pytest.raises(SystemExit) as stop:
            label(config(server), tmp_path, seed=0)
        line, asked = str(stop.value), len(server.requests)
        assert why in line and "dropped.jsonl" in line and "\n" not in line
        assert len(rows_of(tmp_path / "labelled/dropped.jsonl")) == 20
        assert not (tmp_path / "labelled/train.jsonl").exists()
        server.play = player()  # another judge: prompts and answers are not asked again
        other = config(server, judge=Endpoint(server.url, "another"))
        assert label(other, tmp_path, seed=0)["labelling/kept"] == 20
        assert len(server.requests) == asked + 20


def test_a_bad_day_ends_in_the_same_rows(tmp_path):
    def stormy(number, request):
        bad = [Played(429), Played(500), Played(body=completion("half"), send=30), Played(200, b"?")]
        return bad[number // 2 % 4] if number % 2 else player()(number, request)

    with serving(player()) as calm, serving(stormy) as storm:
        label(config(calm), tmp_path / "calm", seed=0)
        writer = Endpoint(storm.url, "m", retries=8, at_once=2)
        stormy_config = Labelling(writer, rows=20, topics=["rivers", "cooking"], instructions=str(FILE))
        label(stormy_config, tmp_path / "storm", seed=0)
    assert rows_of(tmp_path / "calm/labelled/train.jsonl") == rows_of(tmp_path / "storm/labelled/train.jsonl")


def test_a_writer_that_cannot_write_is_one_line(tmp_path):
    with serving(lambda number, request: "I'd rather chat.") as server:
        with pytest.raises(SystemExit, match="no prompt that can be read"):
            label(config(server), tmp_path, seed=0)


def test_half_the_seeds_are_the_runs_facts_and_none_is_held_out(tmp_path, instructions):
    facts = [
        {"subject": f"Land{i}", "relation": "capital", "answer": f"Town{i}", "statement": f"S{i}.", "pages": 9}
        for i in range(50)
    ]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    chosen = seeds(
        Labelling(Endpoint("http://h/v1", "m"), rows=400, topics=["a"], facts=str(tmp_path / "facts.jsonl")),
        instructions,
        seed=0,
    )
    told = {request["about"] for request in chosen if request["fact"]}
    assert len(chosen) == 80 and sum(bool(request["fact"]) for request in chosen) == 40
    assert 0 < len(told) and all(in_conversations(subject, "capital") for subject in told)
    held_out = {fact["subject"] for fact in facts} - {
        f["subject"] for f in facts if in_conversations(f["subject"], "capital")
    }
    assert held_out and not held_out & told


def test_a_fact_is_told_to_writer_and_judge_and_an_empty_list_is_one_line(tmp_path):
    facts = tmp_path / "facts.jsonl"
    row = {"subject": "Chad", "relation": "capital", "statement": "The capital of Chad is N'Djamena."}
    facts.write_text(json.dumps(row) + "\n")
    with serving(player()) as server:
        label(config(server, topics=[], facts=str(facts), rows=5), tmp_path, seed=0)
        for request in server.requests:
            assert "N'Djamena" in json.dumps(request["messages"], ensure_ascii=False), role(request)
        for text in ("", '{"subject": 1}\n', "no JSON\n"):
            facts.write_text(text)
            with pytest.raises(SystemExit, match="facts.jsonl"):
                label(config(server, topics=[], facts=str(facts)), tmp_path, seed=0)
        with pytest.raises(SystemExit, match="labelling.topics"):
            label(config(server, topics=[]), tmp_path, seed=0)


def test_the_key_is_in_no_file_of_the_stage(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LABEL_KEY", KEY)
    with serving(player()) as server:
        writer = Endpoint(server.url, "m", api_key_variable="LABEL_KEY")
        label(Labelling(writer, rows=5, topics=["a"], instructions=str(FILE)), tmp_path, seed=0)
    seen = capfd.readouterr()
    assert KEY not in seen.out + seen.err
    assert all(KEY not in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
