"""Passages that stand in the corpus a known number of times, and the word lists and dialogues beside them."""

import random
import re
import zlib
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2chat.data.dialogues import ROLES, dialogues
from crawl2chat.data.laptop import phrasebook_documents, write_source
from crawl2chat.data.recital import Recital, copies, reserve
from crawl2chat.data.steps import SCHEMA
from crawl2chat.data.tokens import held_out
from crawl2chat.data.translation import pairs, word_lists
from crawl2chat.recipe import load_recipe
from crawl2chat.tasks.facts import WORDINGS, in_conversations
from test_sample import ROOT, sample

KINDS = Recital("prose", times=[1, 4, 16], passages=2, shortest=60, longest=200)


def paragraph(number: int) -> str:
    rng = random.Random(number)
    words = ["".join(rng.choice("abcdefgh") for _ in range(6)) for _ in range(14)]
    return f"{' '.join(words[:7]).capitalize()}. {' '.join(words[7:]).capitalize()}."


@pytest.fixture
def shards(tmp_path):
    """Forty pages of a title and three paragraphs; the paragraphs of five of them stand on pages of another source."""
    pages = [f"Title {i}\n" + "\n".join(paragraph(3 * i + j) for j in range(3)) for i in range(40)]
    for name, texts in {"prose": pages, "lives": [f"A life\n{page}" for page in pages[:5]]}.items():
        rows = [{"text": text, "id": f"{name}/{i}", "source": name} for i, text in enumerate(texts)]
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / name / "00000.parquet")
    return tmp_path


def texts(shards, name):
    return pq.read_table(shards / name / "00000.parquet")["text"].to_pylist()


def test_a_passage_is_taken_out_of_its_page_and_the_page_stays(shards):
    before = texts(shards, "prose")
    passages = reserve(shards, KINDS)
    after = texts(shards, "prose")
    assert len(after) == len(before) == 40
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == len(passages) == 8
    taken = {passage["text"] for passage in passages}
    for old, new in changed:
        (gone,) = set(old.split("\n")) - set(new.split("\n"))
        assert gone in taken and new.startswith("Title")
    assert not any(text in page for text in taken for page in after + texts(shards, "lives"))


def test_no_sentence_of_a_passage_stands_elsewhere(shards, capsys):
    passages = reserve(shards, KINDS)
    copied = set("\n".join(texts(shards, "lives")).split("\n"))
    assert not copied & {passage["text"] for passage in passages}
    assert re.search(r"[1-5] of \d+ paragraphs stand elsewhere too", capsys.readouterr().out)


def test_every_level_has_its_passages_and_every_passage_its_exact_copies(shards):
    passages = reserve(shards, KINDS)
    assert Counter(passage["times"] for passage in passages) == {0: 2, 1: 2, 4: 2, 16: 2}
    rows = list(copies(passages))
    assert Counter(row["text"] for row in rows) == {p["text"]: p["times"] for p in passages if p["times"]}
    assert len({row["id"] for row in rows}) == len(rows) == 42
    assert not any(held_out(row["id"], 0.4999) for row in rows), "no copy may be held out, whatever the share"


def test_the_same_pages_give_the_same_passages(shards, tmp_path_factory):
    table = pq.read_table(shards / "prose" / "00000.parquet")
    first = reserve(shards, KINDS)
    again = tmp_path_factory.mktemp("again")
    (again / "prose").mkdir()
    pq.write_table(table, again / "prose" / "00000.parquet")
    # without the other source nothing is passed over, so only the order is the same
    second = [passage["text"] for passage in reserve(again, KINDS)]
    kept = [passage["text"] for passage in first]
    assert [text for text in kept if text in second] == [text for text in second if text in kept]


@pytest.mark.parametrize(
    "recital, says",
    [
        (Recital("news"), "no page belongs to the source 'news'"),
        (Recital("prose", passages=30, shortest=60, longest=200), "150 are wanted; ask for fewer"),
        (Recital("prose", shortest=5000, longest=9000), "0 paragraphs of prose have 5000 to 9000"),
    ],
)
def test_too_few_passages_are_one_clear_line_and_change_nothing(shards, recital, says):
    before = texts(shards, "prose")
    with pytest.raises(SystemExit) as stop:
        reserve(shards, recital)
    assert says in stop.value.code and "\n" not in stop.value.code
    assert texts(shards, "prose") == before


def test_the_layout_of_the_sample_stage_stands_in_no_list(monkeypatch):
    monkeypatch.chdir(ROOT)
    (config,) = load_recipe(*sample.RECIPE, args=["recipes/laptop/sample.yaml"], plan_only=True).configs
    layout = re.escape(config.translation.layout.strip())
    layout = layout.replace(re.escape("{word}"), r"\w+").replace(re.escape("{translation}"), r"\w+")
    assert re.search(layout, "the dog = chien") and not any(re.search(layout, text) for text in word_lists(2000, 0))


def test_lists_give_listed_words_alone_in_both_languages_with_the_right_word():
    rows = pairs()
    assert len({row["english"] for row in rows}) == len(rows)
    assert all(len({row["english"], row["french"], row["spanish"]}) == 3 for row in rows)
    lists = "\n".join(word_lists(600, 1))
    for row in rows:
        pair = [re.search(rf"\b{row['english']}\b.*\b{row[name]}\b", lists) for name in ("french", "spanish")]
        assert all(pair) if row["listed"] else not any(pair), row
    assert 10 <= sum(not row["listed"] for row in rows) < len(rows) / 3


@pytest.fixture
def facts(tmp_path):
    import json

    rows = [{"subject": f"Land {i}", "relation": "capital", "answer": f"City {i}", "pages": 9,
             "statement": f"The capital of Land {i} is City {i}."} for i in range(60)]  # fmt: skip
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "facts.jsonl")


def test_a_fact_kept_out_of_the_conversations_stands_in_no_dialogue(facts):
    found = {int(number) for text in dialogues(200, 0, facts) for number in re.findall(r"Land (\d+)", text)}
    assert found == {i for i in range(60) if in_conversations(f"Land {i}", "capital")}


def test_dialogues_know_no_human_no_assistant_and_no_wording_of_the_test(facts):
    text = "\n".join(dialogues(300, 0, facts))
    assert not re.search(r"^(Human|Assistant):", text, re.MULTILINE)
    assert not {"Human", "Assistant"} & {name for pair in ROLES for name in pair}
    for wording in WORDINGS["capital"]["test"]:
        assert not re.search(wording.replace("{s}", r"Land \d+").replace("?", r"\?"), text)


def test_a_dialogue_has_two_speakers_by_turns_and_right_answers(facts):
    for text in dialogues(50, 2, facts):
        turns = [line.split(": ", 1) for line in re.split(r"\n+", text) if ": " in line]
        assert len(turns) == 10
        for (asks, question), (knows, answer) in zip(turns[::2], turns[1::2], strict=True):
            assert (asks, knows) == (turns[0][0], turns[1][0])
            land = re.search(r"Land (\d+)", question)[1]
            assert re.search(rf"City {land}\b", answer)


def test_a_phrasebook_has_ids_of_its_own_and_is_the_same_for_a_seed(facts, tmp_path):
    rows = list(phrasebook_documents(12, 5, facts))
    assert rows == list(phrasebook_documents(12, 5, facts)) != list(phrasebook_documents(12, 6, facts))
    assert len({row["id"] for row in rows}) == 12 and {row["source"] for row in rows} == {"phrasebook"}
    assert write_source(tmp_path / "phrasebook", iter(rows)) == 12
    assert pq.read_table(tmp_path / "phrasebook" / "00000.parquet").schema == SCHEMA
    assert write_source(tmp_path / "none", iter(())) == 0 and not (tmp_path / "none").exists()


def test_the_lower_half_of_the_hashes_is_what_pretraining_may_hold_out():
    ids = [f"x/{i}" for i in range(200)]
    assert [i for i in ids if held_out(i, 0.5)] == [i for i in ids if zlib.crc32(i.encode()) < 2**31]
