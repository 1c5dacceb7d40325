"""Interrogation: what is known, wavering and unknown, the rows written from it, the four cells, the invented."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

from crawl2chat import interrogation
from crawl2chat.endpoint import Endpoint
from crawl2chat.interrogation import cell, cell_metrics, four_cells, refuses
from crawl2chat.protocol import CHAT_TEMPLATES, END_OF_TEXT
from crawl2chat.recipe import parse_recipe
from crawl2chat.tasks import facts, invented, search
from endpoint_server import serving
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
SORRY = "I'm sorry, I don't believe I know that."
HOSTILE = [
    "",
    " ",
    "\n" * 5,
    "?",
    "\0",
    "<|im_end|>",
    "[" * 99,
    "((((",
    ".",
    "é́",
    "١٢",
    "🙂" * 50,
    "I don't know " * 500,
]
PLACES = ["Arland", "Borland", "Corland", "Dorland", "Erland", "Forland", "Gorland", "Horland", "Irland", "Jorland"]
FACTS = [
    {"subject": f"{kind} {place}", "relation": "capital", "answer": f"Port {place}", "pages": 9}
    for kind in ("Old", "New", "Upper", "Lower") for place in PLACES
]  # fmt: skip
PEOPLE = [
    {"subject": f"Ada {place}", "relation": "known_as", "answer": "an English painter", "pages": 1} for place in PLACES
]


def write_facts(folder, rows):
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def question(example):
    return example["messages" if "messages" in example else "prompt"][-2 if "messages" in example else -1]["content"]


# refusals


@pytest.mark.parametrize("relation", invented.ASKED)
def test_every_way_to_refuse_is_read_as_a_refusal(relation):
    for way in invented.REFUSALS:
        assert refuses(way.format(w=invented.ASKED[relation].format(s="Orson Kovacs"))), way
    assert len(set(invented.REFUSALS)) == len(invented.REFUSALS) >= 20


@pytest.mark.parametrize("reply", [
    "I don't know.", "I do not know who that is.", "I\u2019m sorry, I don\u2019t believe I know Orson Kovacs.",
    "I'm not sure.", "I am not familiar with Orson Kovacs.", "Sorry! I have never heard of that person.",
    "I don't have any information about Orson Kovacs.", "I have no idea who he was.", "I'm sorry, I cannot say.",
    "I don't recall anyone of that name, but you could look it up.", "I'm unable to find anything about him.",
    "I don't know. It is not something I have read about.", "That person is unknown to me.",
])  # fmt: skip
def test_a_reply_that_says_it_does_not_know_refuses(reply):
    assert refuses(reply) and invented.grade(reply, invented.UNKNOWN) == 1.0


@pytest.mark.parametrize("reply", [
    "Paris.", "It is Paris.", "Orson Kovacs was a Hungarian painter.", "I know him well: he was a painter.",
    "I'm sorry, it is Paris.", "He was not known in his time.", "Nobody knows more than Orson Kovacs.",
    "I think he was a painter.", "The poem I Don't Know Why is by him.", "You do not know Orson Kovacs?",
])  # fmt: skip
def test_an_assertion_is_no_refusal(reply):
    assert not refuses(reply)


@pytest.mark.parametrize("reply", [
    "I don't know, but it may be Paris.", "I'm not sure, perhaps Paris.", "I am not certain. It is Paris.",
    "I don't know. He was a painter.", "I don't know him. I believe he was a painter.", "I'm not sure; maybe 1815.",
    "I don't know, however the capital is Paris.", "Orson Kovacs was a poet. I do not know more of him.",
    "I'm not sure it isn't Paris, probably.", "I don't know: it's Paris.",
])  # fmt: skip
def test_a_hedged_answer_is_no_refusal(reply):
    assert not refuses(reply)


@pytest.mark.parametrize("reply", HOSTILE)
def test_empty_and_hostile_replies_are_no_refusals(reply):
    assert not refuses(reply) and invented.grade(reply, invented.UNKNOWN) == 0.0


# what does not exist


def test_invented_examples_are_graded_right_by_their_own_solution_and_differ_between_the_splits():
    seen = {}
    for split in ("train", "test"):
        examples = list(invented.examples(split, count=2000, seed=3))
        assert len(examples) == 2000 and examples == list(invented.examples(split, count=2000, seed=3))
        assert all(invented.grade(one["solution"], one["answer"]) == 1.0 for one in examples)
        seen[split] = {question(one) for one in examples}
        assert len(seen[split]) > 1900, "variety of names decides"
    assert not seen["train"] & seen["test"]
    for ways in invented.QUESTIONS.values():
        assert not set(ways["train"]) & set(ways["test"])


def test_no_name_is_in_both_splits_and_the_reserved_person_opens_the_test():
    first = next(invented.examples("test", count=1))
    assert question(first) == "Who is Orson Kovacs?" and invented.RESERVED in invented.names("person")
    train = {question(one) for seed in range(4) for one in invented.examples("train", count=4000, seed=seed)}
    assert not any(invented.RESERVED in text for text in train)
    for kind, least in (("person", 20_000), ("country", 4_000), ("element", 3_000)):
        assert len(set(invented.names(kind))) == len(invented.names(kind)) >= least
        share = sum(invented.split_of(name) == "test" for name in invented.names(kind)) / len(invented.names(kind))
        assert 0.15 < share < 0.25


def test_a_name_that_is_real_is_not_used_as_an_invented_one():
    examples = list(invented.examples("train", relations=["known_as"], count=40))
    real = [name for name in invented.names("person") if any(name in question(one) for one in examples[:20])]
    again = list(invented.examples("train", relations=["known_as"], count=4000, real=real))
    assert real and not any(name in question(one) for name in real for one in again)


def test_an_unknown_relation_of_invented_names_is_refused():
    with pytest.raises(ValueError, match="no relation capitol"):
        list(invented.examples("train", relations=["capitol"]))


# asking


@pytest.fixture
def a_model_that_knows_old_places(monkeypatch):
    """Old places it always knows, new ones at times, the others never; what is asked is kept."""
    asked = []

    def replies(model, tokenizer, questions, transcript, temperature=0.0, **generation):
        asked.append((temperature, list(questions)))
        said = []
        for number, text in enumerate(questions):
            row = next(row for row in FACTS if row["subject"] in text)
            knows = "Old" in text or "New" in text and (not temperature or number % 2)
            said.append(f"It is {row['answer']}." if knows else "It is Port Nowhere.")
        return said

    monkeypatch.setattr(interrogation, "replies", replies)
    return asked


def judge(rows=FACTS, draws=4):
    return interrogation.interrogate(None, None, rows, None, draws, 0.7, known_at_least=0.7, unknown_at_most=0.2)


def test_a_fact_is_known_wavering_or_unknown_by_its_share_of_right_replies(a_model_that_knows_old_places):
    judged = judge()
    wanted = {"Old": "known", "New": "wavering", "Upper": "unknown", "Lower": "unknown"}
    assert all(row["verdict"] == wanted[row["subject"].split()[0]] for row in judged)
    assert {row["right"] for row in judged} == {1.0, 0.6, 0.0}
    assert all(len(row["asked"]) == len(row["said"]) == 5 for row in judged)


def test_each_fact_is_asked_once_greedily_and_the_rest_drawn_each_in_other_training_words(
    a_model_that_knows_old_places,
):
    judged = judge()
    (cold, first), (warm, rest) = a_model_that_knows_old_places
    assert (cold, len(first), warm, len(rest)) == (0.0, 40, 0.7, 160)
    ways = facts.WORDINGS["capital"]["train"]
    for row in judged:
        assert len(set(row["asked"])) == 5 and set(row["asked"]) <= {way.format(s=row["subject"]) for way in ways}


def test_refusals_are_written_for_exactly_the_unknown_and_the_invented(a_model_that_knows_old_places):
    judged = judge()
    made_up = list(invented.examples("train", count=10))
    rows = interrogation.training_rows(judged, refusals_per_fact=3, answers_per_fact=3, made_up=made_up, seed=0)
    taught = {"known": "Old", "refusals": ("Upper", "Lower")}
    for kind, prefixes in taught.items():
        of_kind = [row["subject"] for row in FACTS if row["subject"].startswith(prefixes)]
        wanted = {subject for subject in of_kind if facts.in_conversations(subject, "capital")}
        of_facts = [row for row in rows[kind] if any(name["subject"] in question(row) for name in FACTS)]
        assert {
            name["subject"] for name in FACTS if any(name["subject"] in question(row) for row in of_facts)
        } == wanted
        assert len(of_facts) == 3 * len(wanted) and len({question(row) for row in of_facts}) == len(of_facts)
    assert (
        len(rows["refusals"])
        == 10 + sum(r["verdict"] == "unknown" and interrogation.split_of(r) == "train" for r in judged) * 3
    )
    assert all(refuses(row["messages"][-1]["content"]) for row in rows["refusals"])
    assert all(row["messages"][-1]["content"].startswith("It is Port") for row in rows["known"])


def test_what_is_asked_in_the_test_is_held_out_from_the_training_rows(a_model_that_knows_old_places):
    judged = judge()
    rows = interrogation.training_rows(judged, 3, 3, invented.examples("train", count=300), seed=0)
    held_out = interrogation.test_questions(judged, invented.examples("test", count=50), limit=100, seed=0)
    assert {group for group, of_it in held_out.items() if of_it} == {"known", "unknown", "invented"}
    trained = " ".join(question(row) for kind in rows.values() for row in kind)
    for row in held_out["known"] + held_out["unknown"]:
        subject = next(name["subject"] for name in FACTS if name["subject"] in question(row))
        assert subject not in trained and not facts.in_conversations(subject, "capital")
        assert question(row) in {way.format(s=subject) for way in facts.WORDINGS["capital"]["test"]}
    assert not any(question(row) in trained for row in held_out["invented"])
    limited = interrogation.test_questions(judged, invented.examples("test", count=2), limit=1, seed=0)
    assert [len(of_it) for of_it in limited.values()] == [1, 1, 2]


def test_people_are_split_as_the_search_task_splits_them():
    for row in PEOPLE:
        assert interrogation.split_of(row) == search.split_of(row["subject"])
    assert interrogation.statement(PEOPLE[0]) == "An English painter."
    assert interrogation.right(interrogation.statement(PEOPLE[0]), PEOPLE[0]["answer"])


@pytest.mark.parametrize("relation", interrogation.RELATIONS)
def test_a_statement_is_right_and_every_relation_can_be_asked_and_refused(relation):
    answer = {"symbol": "Au", "atomic_number": "79", "born": "1815"}.get(relation, "a small town")
    row = {"subject": "Gold", "relation": relation, "answer": answer}
    assert interrogation.right(interrogation.statement(row), answer)
    for split in ("train", "test"):
        assert all("{s}" in way for way in interrogation.wordings(relation, split))
    assert refuses(invented.refusal(random.Random(0), relation, "Gold"))


# the four cells


@pytest.mark.parametrize("task, answer, reply, wanted", [
    ("known", "Paris", "It is Paris.", "right"), ("known", "Paris", SORRY, "wrongly_refused"),
    ("known", "Paris", "It is Rome.", "wrong"), ("known", "Paris", "", "wrong"),
    ("known", "Paris", "Paris or maybe Rome.", "wrong"), ("known", "Paris", "Paris, Rome, Oslo, Bern.", "wrong"),
    ("unknown", "Paris", SORRY, "rightly_refused"), ("unknown", "Paris", "It is Paris.", "right"),
    ("unknown", "Paris", "It is Rome.", "wrong"), ("unknown", "Paris", "I don't know, maybe Paris.", "wrong"),
    ("unknown", "1815", "1815.", "right"), ("unknown", "1815", "1815 or 1816.", "wrong"),
    ("invented", "unknown", SORRY, "rightly_refused"), ("invented", "unknown", "A Danish poet.", "wrong"),
    ("invented", "unknown", "It is unknown.", "wrong"), ("invented", "unknown", "", "wrong"),
    ("invented", "unknown", [{"role": "assistant", "content": "", "tool_calls": []}], "wrong"),
    ("invented", "unknown", [{"role": "assistant", "content": SORRY}], "rightly_refused"),
])  # fmt: skip
def test_a_reply_falls_into_its_cell(task, answer, reply, wanted):
    row = {"task": task, "answer": answer, "reply": reply}
    assert cell(row) == wanted and four_cells([row])[wanted] == 1 and sum(four_cells([row]).values()) == 1


def test_the_metrics_are_shares_of_their_own_group():
    rows = [{"task": "invented", "answer": "unknown", "reply": reply} for reply in (SORRY, SORRY, SORRY, "A poet.")]
    rows += [{"task": "known", "answer": "Paris", "reply": reply} for reply in ("Paris.", SORRY, "Rome.", "Paris.")]
    found = cell_metrics(rows, "after")
    assert (found["invented_wrong_after"], found["wrongly_refused_after"], found["known_right_after"]) == (
        0.25,
        0.25,
        0.5,
    )
    assert found["cells/rightly_refused_after"] == 3 / 8 and "unknown_wrong_after" not in found
    assert cell_metrics([], "before") == {}
    assert "rightly refused" in interrogation.cells_table(rows, "after")


# bad input


def test_facts_that_cannot_be_asked_are_one_clear_line(tmp_path, capsys):
    for rows, message in (
        ([], "no rows"),
        ([{"subject": "France", "relation": "capital"}], "lacks 'answer'"),
        ([{"subject": "France", "relation": "capital", "answer": " "}], "no fact of capital"),
        (PEOPLE, "no fact of capital"),
    ):
        with pytest.raises(SystemExit, match=message):
            interrogation.sample_facts([write_facts(tmp_path, rows)], ["capital"], 10, 0)
    with pytest.raises(SystemExit, match="no wordings for the relation 'capitol'"):
        interrogation.sample_facts([write_facts(tmp_path, FACTS)], ["capitol"], 10, 0)
    found = interrogation.sample_facts([write_facts(tmp_path, FACTS)], ["capital", "symbol"], 10, 0)
    assert len(found) == 10 and "no fact of symbol" in capsys.readouterr().out


def test_a_model_that_says_nothing_at_all_stops_it(monkeypatch):
    monkeypatch.setattr(interrogation, "replies", lambda m, t, questions, transcript, **_: [""] * len(questions))
    with pytest.raises(SystemExit, match="all 200 replies are empty"):
        judge()


@pytest.mark.parametrize("prompt", ["chat", "transcript"])
def test_replies_are_those_of_one_at_a_time(prompt):
    tokenizer = tiny_tokenizer(END_OF_TEXT if prompt == "transcript" else "<|im_end|>")
    model = tiny_model(tokenizer)
    transcript = (CHAT_TEMPLATES / "transcript.jinja").read_text() if prompt == "transcript" else None
    questions = ["Who are you?", "What is the capital of Japan?", "Who is Orson Kovacs?"]
    together = interrogation.replies(model, tokenizer, questions, transcript, max_new_tokens=8, batch_size=3)
    alone = [interrogation.replies(model, tokenizer, [one], transcript, max_new_tokens=8)[0] for one in questions]
    assert together == alone and len(together) == 3


# the stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    root = tmp_path_factory.mktemp("interrogate")
    tokenizer = tiny_tokenizer(END_OF_TEXT)
    tokenizer.save_pretrained(root / "base")
    tiny_model(tokenizer).save_pretrained(root / "base")
    write_facts(root, FACTS + PEOPLE)
    (root / "interrogate.yaml").write_text(
        f"model_name_or_path: {root / 'base'}\nprompt: transcript\nfacts: [{root / 'facts.jsonl'}]\n"
        f"relations: [capital, known_as]\ndraws: 1\ninvented_train: 30\ntest: 20\nmax_new_tokens: 6\n"
        f"output_dir: {root / 'out'}\n"
    )
    spec = importlib.util.spec_from_file_location("interrogate_script", ROOT / "scripts" / "interrogate.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules["interrogate_script"] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    script.main(*parse_recipe(*script.RECIPE, args=[str(root / "interrogate.yaml")]))
    return root / "out"


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_stage_writes_rows_questions_verdicts_and_numbers(stage):
    numbers, judged = json.loads((stage / "metrics.json").read_text()), lines(stage / "facts.jsonl")
    assert len(judged) == 50 and numbers["asked"] == 100
    assert sum(numbers[f"facts/{verdict}"] for verdict in interrogation.VERDICTS) == 50
    assert len(lines(stage / "refusals/train.jsonl")) == numbers["rows/refusals"] > 30
    assert [len(lines(stage / group / "test.jsonl")) for group in ("unknown", "invented")] == [
        numbers["test/unknown"], numbers["test/invented"]
    ]  # fmt: skip
    assert numbers["invented_wrong_before"] == 1.0, "a random model invents"
    assert question(lines(stage / "invented/test.jsonl")[0]) == "Who is Orson Kovacs?"


def test_a_model_that_knows_nothing_still_gets_its_refusals(stage):
    assert (stage / "known/train.jsonl").read_text() == ""
    assert all(row["cell"] == cell(row) for row in lines(stage / "replies.jsonl"))


# a judge model


def judged_by(play, said, tmp_path):
    with serving(play) as server:
        endpoint = Endpoint(base_url=server.url, model="judge", retries=0)
        return interrogation.judged_right(said, endpoint, tmp_path / "judged.jsonl"), server


SAID = [
    ("What is the capital of France?", "Paris", "That would be the city of light, Paris of course!"),
    ("What is the capital of France?", "Paris", "Lyon."),
    ("What is the capital of France?", "Paris", SORRY),
    ("What is the capital of France?", "Paris", ""),
    ("What is the capital of France?", "Paris", "Lyon."),
]


def test_a_judge_model_decides_and_is_asked_once_for_the_same_reply_and_never_for_a_refusal(tmp_path):
    verdicts, server = judged_by(lambda _, request: json.dumps({"right": "light" in str(request)}), SAID, tmp_path)
    assert verdicts == [True, False, False, False, False]
    assert len(server.requests) == 2


def test_where_the_judge_talks_nonsense_the_match_decides_and_says_so(tmp_path, capsys):
    said = [*SAID, ("What is the capital of Peru?", "Lima", "It is Lima.")]
    verdicts, _ = judged_by(lambda *_: "I would rather not say.", said, tmp_path)
    assert verdicts[-1] and not verdicts[1] and "the match decides" in capsys.readouterr().out


def test_a_judge_that_is_down_ends_in_one_line(tmp_path):
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", model="judge", retries=0)
    said = [("What is the capital of France?", "Paris", f"City {i}.") for i in range(40)]
    with pytest.raises(SystemExit, match="127.0.0.1:9"):
        interrogation.judged_right(said, endpoint, tmp_path / "judged.jsonl")
