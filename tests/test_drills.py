"""Drills: the same for a seed, as many as asked for, and nothing in them that a test will ask."""

import re
from collections import Counter
from itertools import islice

import pytest

from crawl2chat.data.drills import TITLES, drill_documents
from crawl2chat.tasks import addition, apples, comparison, counting, product, spelling
from test_tasks import WORDS

NUMBER = r"(\d+(?:\.\d+)?)"


@pytest.fixture(scope="module")
def drills():
    return list(drill_documents(1500, seed=0, words=WORDS))


@pytest.fixture(scope="module")
def by_kind(drills):
    kinds = {title: kind for kind, titles in TITLES.items() for title in titles}
    texts = {kind: [] for kind in TITLES}
    for row in drills:
        title, _, rest = row["text"].partition("\n")
        texts[kinds[title]].append(rest)
    return texts


def pairs(texts: list[str], pattern: str) -> set[frozenset]:
    return {frozenset(pair) for text in texts for pair in re.findall(pattern, text)}


def asked(task, *args, **knobs) -> set[frozenset]:
    """The pairs of numbers that the test split asks about."""
    return {
        frozenset(re.findall(NUMBER, example["prompt"][-1]["content"]))
        for seed in range(5)
        for example in task.examples("test", *args, count=400, seed=seed, **knobs)
    }


def test_as_many_as_asked_for_each_with_its_own_id_and_the_source(drills):
    assert len(drills) == len({row["id"] for row in drills}) == 1500
    assert all(set(row) == {"text", "id", "source"} and row["source"] == "drills" for row in drills)
    assert len({row["text"] for row in drills}) == 1500
    assert not list(drill_documents(0, 0, WORDS))


def test_the_same_for_a_seed_and_other_ones_for_another(drills):
    assert list(islice(drill_documents(1500, 0, WORDS), 200)) == drills[:200]
    assert list(drill_documents(200, 0, WORDS)) == drills[:200]  # more of them changes none
    assert not {row["text"] for row in drills} & {row["text"] for row in drill_documents(200, 1, WORDS)}


def test_every_kind_has_its_share(by_kind):
    counts = Counter({kind: len(texts) for kind, texts in by_kind.items()})
    assert set(counts) == set(TITLES) and min(counts.values()) > 80
    assert counts["addition"] + counts["lookup"] > 550


def test_no_held_out_sum_is_in_any_drill(by_kind):
    trained = pairs(by_kind["addition"] + by_kind["addition_at_once"], r"(\d+) (?:\+|and) (\d+)")
    # the single digits that a worked sum adds are its steps; the questions are the pairs of the tests' size
    held_out = {pair for digits in (2, 3) for pair in asked(addition, digits=digits)}
    assert len(trained) > 1000 and len(held_out) > 500 and not trained & held_out
    questions = [line.split("?")[0] for text in by_kind["addition_at_once"] for line in text.split("\n")]
    assert not pairs(questions, r"(\d+) (?:\+|and) (\d+)") & asked(addition, digits=1)


def test_no_held_out_product_is_in_any_drill(by_kind):
    trained = pairs(by_kind["calculator"], r"(\d+) \* (\d+)")
    assert len(trained) > 300
    assert not trained & (asked(product) | asked(product, digits=2))


def test_no_held_out_comparison_is_in_any_drill(by_kind):
    trained = pairs(by_kind["comparison"], NUMBER + r" is [\d.]+ and " + NUMBER + " is")
    assert len(trained) > 300 and frozenset({"9.11", "9.9"}) not in trained
    assert not trained & asked(comparison)


def test_no_held_out_word_is_spelled_or_counted_in(by_kind):
    held_out = {word for word in WORDS if spelling.split_of(word) == "test"}
    words = set(re.findall("[a-z]+", "\n".join(by_kind["spelling"] + by_kind["counting"]).lower()))
    assert held_out and not held_out & words
    assert {"spell", "letter"} & words and len(words & set(WORDS)) > 20


def test_no_wording_of_a_test_is_in_any_drill(drills):
    text = "\n".join(row["text"] for row in drills)
    for task in (apples, product, spelling, counting, comparison):
        for wording in task.WORDINGS["test"]:
            pattern = re.sub(r"\\\{\w+\\\}", r"[\\w.]+", re.escape(wording))
            assert not re.search(pattern, text), wording
    for wordings in addition.WORDINGS["test"].values():
        for wording in wordings:
            assert not re.search(re.sub(r"\\\{\w\\\}", r"\\d+", re.escape(wording)), text), wording


def test_what_a_drill_says_is_right(by_kind):
    for text in by_kind["calculator"]:
        for a, b, result in re.findall(r"Python: (\d+) \* (\d+) gives (\d+)\.", text):
            assert int(a) * int(b) == int(result)
    for text in by_kind["addition_at_once"]:
        for a, b, result in re.findall(r"(\d+) \+ (\d+)\D* (\d+)\.$", text, re.MULTILINE):
            assert int(a) + int(b) == int(result)
    for text in by_kind["lookup"]:
        for person, year in re.findall(r"When was (.+?) born\? \1 was born in (\d+)\.", text):
            assert re.search(rf"{person} \({year}-|{person} was .*{year}", text)
