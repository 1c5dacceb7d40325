"""Verses about animals: of all qualities on purpose, in two splits that share no wording."""

from statistics import fmean

import pytest

from crawl2chat.tasks import verse


def rows(split: str = "train", count: int = 400, **knobs) -> list[dict]:
    return list(verse.examples(split, count=count, **knobs))


def question(row: dict) -> str:
    return row["prompt"][-1]["content"]


def rhymes(text: str) -> bool:
    lines = verse.lines_of(text)
    one, other = lines[0][-1], lines[-1][-1]
    return len(lines) == 2 and one != other and verse.RHYMES.get(one) == verse.RHYMES.get(other)


def share_of_vivid(text: str) -> float:
    words = [word for line in verse.lines_of(text) for word in line]
    tones = [tone for word in words for tone, kinds in verse.WORDS.items() if any(word in k for k in kinds.values())]
    return fmean(tone == "vivid" for tone in tones) if tones else 0.5


def test_the_test_begins_with_two_lines_about_a_pelican():
    for seed in range(3):
        assert question(rows("test", 1, seed=seed)[0]) == "Write two lines about a pelican."


def test_the_splits_share_no_wording():
    names = verse.WORDINGS
    assert not set(names["train"]) & set(names["test"])
    assert all(len(set(names[split])) == len(names[split]) for split in names)
    assert len(set(verse.ANIMALS)) == len(verse.ANIMALS)


def test_every_question_is_asked_once_before_one_comes_twice_and_names_its_animal():
    for split in ("train", "test"):
        several = len(verse.ANIMALS) * len(verse.WORDINGS[split])
        found = rows(split, several)
        assert len({question(row) for row in found}) == several
        assert all(f"{row['answer']}" in question(row).split(" about ")[-1] or " of " in question(row) or " on "
                   in question(row) for row in found)  # fmt: skip
    assert question(next(row for row in rows(count=500) if row["answer"] == "owl")).count("an owl") == 1


def test_as_many_examples_as_asked_for_the_same_for_a_seed():
    for split in ("train", "test"):
        assert rows(split, 700, seed=1) == rows(split, 700, seed=1) != rows(split, 700, seed=2)
        assert len(rows(split, 700)) == 700
    assert [row["prompt"] for row in rows(care=0.9)] == [row["prompt"] for row in rows(care=0.1)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_with_all_care_a_verse_is_two_rhyming_lines_about_the_animal(split):
    for row in rows(split, care=1.0):
        text = row["solution"]
        assert verse.grade(text, row["answer"]) == 1.0 and rhymes(text)
        assert 10 <= sum(map(len, verse.lines_of(text))) <= 20
    assert fmean(share_of_vivid(row["solution"]) for row in rows(split, care=1.0)) > 0.8


def test_without_any_care_no_verse_rhymes_names_the_animal_or_has_the_right_length():
    for row in rows(care=0.0):
        text = row["solution"]
        assert not rhymes(text) and verse.grade(text, row["answer"]) == 0.0
        assert not any(row["answer"] in line for line in verse.lines_of(text))
        words = sum(map(len, verse.lines_of(text)))
        assert words < 11 or words > 20 or len(verse.lines_of(text)) != 2
    assert fmean(share_of_vivid(row["solution"]) for row in rows(care=0.0)) < 0.3


def test_by_default_each_thing_goes_well_in_about_half_of_the_verses():
    texts = [(row["solution"], row["answer"]) for row in rows(count=2000)]
    assert fmean(f" {animal} " in text for text, animal in texts) == pytest.approx(0.75, abs=0.05)
    assert fmean(share_of_vivid(text) > 0.5 for text, _ in texts) == pytest.approx(0.45, abs=0.1)
    assert 0.3 < fmean(rhymes(text) for text, _ in texts) < 0.5  # a single line cannot rhyme
    assert len({text for text, _ in texts}) > 1900


@pytest.mark.parametrize(
    "reply, score",
    [
        ("The owl sang by the sea,\nand it danced under a tree.", 1),
        ("The owl sang by the sea,\n\n  and it danced under a tree.\n", 1),
        ("Owls sang by the sea,\nand they danced under a tree.", 1),
        ("The owl sang by the sea, and it danced under a tree.", 0),
        ("The owl sang\nby the sea\nall day.", 0),
        ("The cat sang by the sea,\nand it danced under a tree.", 0),
        ("The growl came by the sea,\nand it danced under a tree.", 0),
        ("", 0),
        ("\n\n", 0),
        ("?\n!", 0),
    ],
)
def test_two_lines_that_name_the_animal_and_nothing_else_have_the_form(reply, score):
    assert verse.grade(reply, "owl") == score


@pytest.mark.parametrize("care", [-0.1, 1.5])
def test_a_care_that_is_no_probability_is_named(care):
    with pytest.raises(ValueError, match="verse: care"):
        rows(care=care)
