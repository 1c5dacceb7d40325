"""Cleaning conversations: what says the same goes, what differs in a digit stays, no held-out question is left."""

import json
import random

import pytest

from crawl2chat.cleaning import decontaminate, deduplicate, read_questions, reasons, words
from crawl2chat.lengths import measure, packing
from crawl2chat.protocol import loss_mask
from tiny import tiny_tokenizer


def talk(question: str, answer: str = "Yes.") -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def essay(seed: int, length: int = 200) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghij", k=5)) for _ in range(length)]


@pytest.mark.parametrize("again", ["What is a cat?", "what is a cat", "WHAT  is\na cat?!", "\uff37hat is a cat?"])
def test_the_same_words_in_other_dress_are_one_conversation(again):
    kept, dropped = deduplicate([talk("What is a cat?"), talk(again)])
    assert len(kept) == 1 and reasons(dropped) == {"same_words": 1}


@pytest.mark.parametrize(
    "one, other",
    [
        ("What is 16 + 59?", "What is 16 - 59?"),
        ("What is 16 + 59?", "What is 16 + 58?"),
        ("Is 9.11 larger?", "Is 9.9 larger?"),
        ("How many dots: ....", "How many dots: ....."),
        ("What is 2^3?", "What is 2*3?"),
        ("\u4e2d\u56fd\u7684\u9996\u90fd", "\u65e5\u672c\u7684\u9996\u90fd"),
    ],
)
def test_questions_that_differ_in_a_digit_or_a_sign_are_two(one, other):
    kept, dropped = deduplicate([talk(one), talk(other)])
    assert len(kept) == 2 and not dropped
    assert decontaminate([talk(one)], [other])[0] == [talk(one)]


def test_who_said_it_and_what_was_called_count():
    call = [{"type": "function", "function": {"name": "python", "arguments": {"code": "1 + 1"}}}]
    other = [{"type": "function", "function": {"name": "python", "arguments": {"code": "1 * 1"}}}]
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]},
        *({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": c}]}
          for c in (call, other)),
    ]  # fmt: skip
    assert len(deduplicate(rows)[0]) == 4


def test_planted_near_duplicates_go_and_the_rest_stays():
    rng, rows, copies = random.Random(0), [], 0
    for seed in range(150):
        text = essay(seed, rng.choice([40, 120, 400]))
        rows.append(talk("Continue.", " ".join(text)))
        if seed % 3 == 0:
            text[0] = text[-1] = "changed"
            copies += len(text) > 40
            rows.append(talk("Continue.", " ".join(text)))
    kept, dropped = deduplicate(rows)
    assert {row["reason"] for row in dropped} == {"nearly_the_same"}
    assert len(dropped) >= copies and all("changed" in row["messages"][1]["content"] for row in dropped)


def test_two_questions_that_one_page_answers_are_two():
    page = {"role": "tool", "content": " ".join(essay(3))}
    rows = [talk("When was she born?", "1849."), talk("When did she die?", "1912.")]
    for row in rows:
        row["messages"].insert(1, page)
    assert deduplicate(rows)[0] == rows


def test_two_short_questions_with_one_answer_are_two():
    answer = "I am Pelican, a small assistant made by crawl2chat in the year 2026, and I try to be of help."
    rows = [talk("Who are you?", answer), talk("Who built you?", answer)]
    assert deduplicate(rows)[0] == rows


def test_half_a_text_in_common_is_no_duplicate():
    one, other = essay(1), essay(2)
    kept, dropped = deduplicate([talk("Go.", " ".join(one)), talk("Go.", " ".join(one[:100] + other[100:]))])
    assert len(kept) == 2 and not dropped


def test_a_short_question_goes_as_a_whole_turn_alone():
    rows = [talk("Who are you?"), talk("I met a man. who are you, I asked him."), talk("Hi", "Who are you?")]
    kept, dropped = decontaminate(rows, ["who are YOU"])
    assert kept == rows[1:] and reasons(dropped) == {"asks_the_question": 1}


def test_a_middle_question_goes_wherever_it_stands_whole():
    question = "In which year was the old bridge of Mostar built?"
    rows = [talk(f"Quiz! {question} Answer briefly."), talk("When was the old bridge of Mostar built?")]
    kept, dropped = decontaminate(rows, [question])
    assert kept == rows[1:] and reasons(dropped) == {"holds_the_question": 1}


def test_a_long_question_goes_with_13_words_in_a_row_and_stays_with_12():
    text = essay(0, 40)
    rows = [talk(" ".join(["so", *text[5:18], "end"])), talk("a", " ".join(text[5:18])), talk(" ".join(text[5:17]))]
    kept, dropped = decontaminate(rows, [" ".join(text)])
    assert kept == rows[2:] and reasons(dropped) == {"shares_13_words": 2}


def test_an_empty_question_matches_nothing():
    assert len(decontaminate([talk("..."), talk(""), talk("What?")], ["", "?", " "])[0]) == 3


def test_the_held_out_questions_are_the_users_last_words(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital of Chad?"}]
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": turns, "answer": "x"}) + "\n")
    assert read_questions([str(tmp_path / "test.jsonl")]) == ["Capital of Chad?"]
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": [], "answer": "x"}) + "\n")
    with pytest.raises(SystemExit, match="row 1"):
        read_questions([str(tmp_path / "test.jsonl")])


def test_lengths_are_those_of_training_and_lost_answers_are_named():
    tokenizer = tiny_tokenizer()
    rows = [talk("Hello!", "It is two."), talk("x" * 100, "It is two."), talk("Hello!", "y" * 100)]
    lengths = measure(rows, tokenizer, max_length=60)
    assert lengths.rows == [len(loss_mask(tokenizer, row["messages"])[0]) for row in rows]
    assert (lengths.truncated, lengths.answer_lost, lengths.answer_cut) == (2, 1, 1)
    assert lengths.supervised == [sum(loss_mask(tokenizer, row["messages"])[1]) for row in rows]
    text = "\n".join(lengths.lines())
    assert "2 of 3 rows exceed max_length 60: 1 lose their whole answer, 1 more a part" in text
    assert measure([], tokenizer, 60).lines()


def test_packing_shares_are_right():
    used = packing([10, 2, 10, 2, 8, 8], max_length=10, batch_size=2)
    assert used == {"padded": pytest.approx(40 / 56), "padded by length": pytest.approx(1.0), "packed": 1.0}
    assert packing([25], max_length=10, batch_size=2)["packed"] == 1.0


def test_words_keep_what_a_digit_decides():
    assert words("Don't pay $3.50 (or 1,000)!") == ["don", "t", "pay", "$", "3.50", "or", "1,000"]
