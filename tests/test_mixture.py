"""The mixture: loss on the assistant's words alone, every loss of a row counted, shares as the recipe says."""

import importlib
import json
import random
from collections import Counter

import pytest

from crawl2chat.mixture import Part, in_sorted_steps, mix
from crawl2chat.protocol import END_OF_TEXT, IM_END
from tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def talk(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def rows_file(tmp_path):
    def write(rows: list, name: str = "train.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def supervised(row: dict) -> list[int]:
    return [label for label in row["labels"] if label != -100]


def mixed(tokenizer, *parts: Part, max_length: int = 256, batch_size: int = 4, seed: int = 0):
    return mix(list(parts), tokenizer, max_length, batch_size, seed)


def test_only_the_assistants_words_and_its_end_token_bear_loss(tokenizer, rows_file):
    call = {"type": "function", "function": {"name": "python", "arguments": {"code": "1 + 1"}}}
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "python", "content": "2"},
        {"role": "assistant", "content": "It is two."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "Hello!"},
    ]
    dataset, counts = mixed(tokenizer, Part(rows_file([{"messages": turns}])))
    (row,) = dataset
    assert all(label in (-100, i) for i, label in zip(row["input_ids"], row["labels"], strict=True))
    text = tokenizer.decode(supervised(row))
    head, _, tail = text.partition(IM_END)
    assert head.startswith("<tool_call>") and '"1 + 1"' in head
    assert tail == f"It is two.{IM_END}Hello!{IM_END}"
    assert counts.tokens == len(row["input_ids"]) and counts.supervised == len(supervised(row))


def test_pages_bear_loss_on_every_token_but_the_first_mark(tokenizer, rows_file):
    dataset, _ = mixed(tokenizer, Part(rows_file([{"text": "The capital of France is Paris."}]), column="text"))
    (row,) = dataset
    assert tokenizer.decode(row["input_ids"][:1]) == END_OF_TEXT and row["labels"][0] == -100
    assert row["labels"][1:] == row["input_ids"][1:]


def test_messages_may_be_text_in_json(tokenizer, rows_file):
    row = talk("Hi!", "Hello!")
    plain, _ = mixed(tokenizer, Part(rows_file([row])))
    spelled, _ = mixed(tokenizer, Part(rows_file([{"messages": json.dumps(row["messages"])}])))
    assert plain[:] == spelled[:]


def test_an_answer_that_is_cut_away_drops_its_row_and_is_counted(tokenizer, rows_file):
    rows = [talk("Hi!", "Hello!"), talk("Who are you? " * 30, "Hello!"), talk("Hi!", "I am a small assistant. " * 30)]
    dataset, counts = mixed(tokenizer, Part(rows_file(rows)), max_length=64)
    assert len(dataset) == counts.rows == 2 and (counts.truncated, counts.without_answer) == (2, 1)
    assert max(len(row["input_ids"]) for row in dataset) == 64
    assert "2 cut at 64 tokens, 1 of them lost their answer and were dropped" in counts.lines[0]
    assert counts.tokens == sum(len(row["input_ids"]) for row in dataset)


def test_a_mixture_that_loses_every_row_is_one_line(tokenizer, rows_file):
    with pytest.raises(SystemExit, match="^error: sft: no row is left to train on; [^\n]*$"):
        mixed(tokenizer, Part(rows_file([talk("Who are you? " * 30, "Hello!")])), max_length=16)


def counted(tokenizer, part: Part) -> Counter:
    dataset, counts = mixed(tokenizer, part)
    assert counts.rows == len(dataset)
    return Counter(tokenizer.decode(supervised(row)) for row in dataset)


@pytest.mark.parametrize("fraction, taken", [(1.0, 10), (0.5, 5), (0.31, 3), (2.0, 20), (2.5, 25)])
def test_a_fraction_takes_its_share_and_above_one_repeats_evenly(tokenizer, rows_file, fraction, taken):
    path = rows_file([talk("Hi!", f"I am {i}.") for i in range(10)])
    found = counted(tokenizer, Part(path, fraction=fraction))
    assert sum(found.values()) == taken
    assert max(found.values()) - min(found.values()) <= 1 and len(found) == min(taken, 10)


@pytest.mark.parametrize("rows", [1, 7, 10, 23])
def test_a_number_of_rows_goes_before_the_fraction(tokenizer, rows_file, rows):
    path = rows_file([talk("Hi!", f"I am {i}.") for i in range(10)])
    found = counted(tokenizer, Part(path, fraction=0.1, rows=rows))
    assert sum(found.values()) == rows and len(found) == min(rows, 10)


def test_a_fraction_too_small_for_one_row_takes_none_and_says_so(tokenizer, rows_file):
    path = rows_file([talk("Hi!", "Hello!")] * 3)
    _, counts = mixed(tokenizer, Part(path, fraction=0.1), Part(path))
    assert counts.rows == 3 and "0 of 3 rows" in counts.lines[0] and "3 of 3 rows" in counts.lines[1]


def test_the_seed_decides_rows_and_order(tokenizer, rows_file):
    part = Part(rows_file([talk("Hi!", f"I am {i}.") for i in range(30)]), fraction=0.5)
    first, again, other = (mixed(tokenizer, part, seed=seed)[0][:] for seed in (0, 0, 1))
    assert first == again != other


def test_parts_are_mixed_and_not_one_after_another(tokenizer, rows_file):
    one = Part(rows_file([talk("Hi!", "Hello!")] * 40, "one.jsonl"))
    two = Part(rows_file([{"text": "Who are you?"}] * 40, "two.jsonl"), column="text")
    dataset, counts = mixed(tokenizer, one, two, batch_size=2)
    kinds = ["p" if row["labels"][1] != -100 else "c" for row in dataset]
    assert (
        len(kinds) == 80
        and kinds.count("p") == 40
        and ["40 of 40 rows" in line for line in counts.lines[:3]] == [True, True, False]
    )
    assert {"p", "c"} == set(kinds[:40]) == set(kinds[40:])


def asked(dataset, tokenizer) -> Counter:
    """The users' words of each row that was kept."""
    rows = [tokenizer.decode(row["input_ids"]) for row in dataset]
    return Counter(row.partition("user\n")[2].partition(IM_END)[0] for row in rows)


def test_what_says_the_same_stays_once_over_all_parts_and_a_share_counts_what_is_left(tokenizer, rows_file):
    rows = [talk("Who are you?", "I am small."), talk("who are you", "I am small"), talk("Who are you?", "Paris.")]
    one, two = Part(rows_file(rows, "one.jsonl"), fraction=2.0), Part(rows_file(rows[:1] * 3, "two.jsonl"))
    dataset, counts = mix([one, two], tokenizer, 64, 4, 0, repeats=False)
    assert counts.rows == len(dataset) == 4 and counts.repeated == 4
    assert f"{one.path}: 1 of 3 rows dropped: same_words" in counts.lines
    assert f"{two.path}: 3 of 3 rows dropped: same_words" in counts.lines
    assert mix([one, two], tokenizer, 64, 4, 0)[1].rows == 9


def test_pages_are_no_conversations_and_stay(tokenizer, rows_file):
    page = Part(rows_file([{"text": "Who are you?"}] * 3), column="text")
    assert mix([page], tokenizer, 64, 4, 0, repeats=False)[1].rows == 3


def held_out(tmp_path, *questions: str) -> str:
    (tmp_path / "held_out" / "task").mkdir(parents=True)
    (tmp_path / "held_out" / "none").mkdir()
    (tmp_path / "held_out" / "none" / "test.jsonl").touch()  # a task that holds nothing out
    rows = [{"prompt": [{"role": "user", "content": question}], "answer": "x"} for question in questions]
    (tmp_path / "held_out" / "task" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "held_out")


def test_a_row_that_asks_a_held_out_question_is_dropped_and_counted(tokenizer, rows_file, tmp_path):
    path = rows_file([talk("Who are you?", "I am small."), talk("What is 12 + 34?", "46")])
    dataset, counts = mix([Part(path)], tokenizer, 64, 4, 0, held_out=[held_out(tmp_path, "what is 12 + 34")])
    assert counts.contaminated == 1 and set(asked(dataset, tokenizer)) == {"Who are you?"}
    assert counts.lines[:2] == [
        f"{path}: 1 of 2 rows dropped: asks_the_question",
        "1 held-out questions: 1 rows held one",
    ]


def test_a_folder_without_held_out_questions_is_one_line(tokenizer, rows_file, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="^error: [^\n]*no test.jsonl below this folder[^\n]*$"):
        mix([Part(rows_file([talk("a", "b")]))], tokenizer, 64, 4, 0, held_out=[str(tmp_path / "empty")])


@pytest.mark.parametrize("task, knobs", [("addition", {"manner": "steps"}), ("apples", {}), ("comparison", {})])
def test_a_drilled_family_stays_and_its_identical_questions_go(tokenizer, rows_file, tmp_path, task, knobs):
    examples = importlib.import_module(f"crawl2chat.tasks.{task}").examples
    drilled = [{"messages": [*e["prompt"], {"role": "assistant", "content": e["solution"]}]}
               for e in examples("train", count=200, seed=0, **knobs)]  # fmt: skip
    tested = [e["prompt"][-1]["content"] for e in examples("test", count=200, seed=0, **knobs)]
    leaked = [talk(question, "It is two.") for question in tested[:7]]
    counts = mix([Part(rows_file([*drilled, *leaked]))], tokenizer, 512, 4, 0, held_out=[held_out(tmp_path, *tested)])[
        1
    ]
    assert counts.contaminated == 7 and counts.rows == 200


def test_lengths_and_what_truncation_took_are_said(tokenizer, rows_file):
    rows = [talk("Hi!", "Hello!"), talk("Who are you? " * 30, "Hello!"), talk("Hi!", "I am a small assistant. " * 30)]
    _, counts = mixed(tokenizer, Part(rows_file(rows)), max_length=64)
    said = "\n".join(counts.lines)
    assert "warning: 2 of 3 rows exceed max_length 64: 1 lose their whole answer, 1 more a part of it" in said
    assert "whole row" in said and "bear loss" in said and f"padded {counts.padded:.0%}" in said
    assert 0 < counts.padded <= 1 and 0 < counts.packed <= 1


def test_a_split_is_a_matter_of_the_hub_alone(tokenizer, rows_file):
    with pytest.raises(SystemExit, match="`split: test` is for sets on the hub"):
        mixed(tokenizer, Part(rows_file([talk("Hi!", "Hello!")]), split="test"))


def test_a_split_is_streamed_and_what_is_dropped_of_it_is_not_made_up_by_repeats(tokenizer, monkeypatch):
    rows = [{**talk("Hi!", f"I am {i // 2}."), "source": "x"} for i in range(20)]
    calls = []
    monkeypatch.setattr("crawl2chat.mixture.load_dataset", lambda *a, **k: calls.append((a, k)) or iter(rows))
    _, counts = mix([Part("owner/set:SFT", rows=10, split="chat")], tokenizer, 64, 4, 0, repeats=False)
    assert calls == [(("owner/set", "SFT"), {"split": "chat", "streaming": True})]
    assert counts.rows == 5 == counts.repeated


BAD = [
    ({"messages": []}, "must be a list of turns"),
    ({"messages": 7}, "must be a list of turns"),
    ({"messages": "Who are you?"}, "must be a list of turns"),
    ({"messages": None}, "must be a list of turns"),
    ({"messages": ["Hi!"]}, "'Hi!' is not a role"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "'robot' is not a role; use system, user, assistant, tool"),
    ({"messages": [{"from": "user", "value": "x"}]}, "None is not a role"),
    ({"messages": [{"role": "user", "content": "Hi!"}]}, "no turn of the assistant"),
    ({"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant"}]}, "content"),
    ({"messages": [{"role": "user", "content": 7}, {"role": "assistant", "content": "x"}]}, "content"),
    ({"conversations": []}, "no key 'messages' (it has conversations)"),
]


@pytest.mark.parametrize("row, complaint", BAD, ids=[says for _, says in BAD])
def test_a_row_that_is_no_conversation_is_one_line_with_its_place(tokenizer, rows_file, row, complaint):
    path = rows_file([talk("Hi!", "Hello!"), row])
    with pytest.raises(SystemExit) as stop:
        mixed(tokenizer, Part(path))
    message = stop.value.code
    assert path in message and complaint in message and "2" in message.removeprefix(f"error: {path}")
    assert "\n" not in message


def test_a_page_that_is_no_text_is_one_line(tokenizer, rows_file):
    with pytest.raises(SystemExit, match="row 2: `text` must be a string, got '7'"):
        mixed(tokenizer, Part(rows_file([{"text": "x"}, {"text": 7}]), column="text"))


@pytest.mark.parametrize("count, rows_a_step", [(0, 4), (3, 4), (64, 8), (100, 32), (7, 1)])
def test_a_step_is_a_plain_shuffles_step_with_its_rows_sorted(count, rows_a_step):
    rng = random.Random(count)
    rows = [{"id": i, "input_ids": [0] * rng.randint(1, 200)} for i in range(count)]
    shuffled = random.Random(5).sample(rows, len(rows))
    ordered = in_sorted_steps(rows, rows_a_step, random.Random(5))
    for start in range(0, count, rows_a_step):
        step = ordered[start : start + rows_a_step]
        assert {row["id"] for row in step} == {row["id"] for row in shuffled[start : start + rows_a_step]}
        assert [len(row["input_ids"]) for row in step] == sorted(len(row["input_ids"]) for row in step)


def test_micro_batches_of_sorted_steps_waste_less_than_whole_steps():
    rng = random.Random(0)
    rows = [{"input_ids": [0] * rng.randint(1, 200)} for _ in range(2048)]
    lengths = [len(row["input_ids"]) for row in in_sorted_steps(rows, 32, rng)]
    cells = {size: sum(size * max(lengths[i : i + size]) for i in range(0, 2048, size)) for size in (8, 32)}
    assert sum(lengths) / cells[8] > 0.8 > 0.6 > sum(lengths) / cells[32]


def test_a_file_that_a_stage_left_empty_adds_nothing_and_is_told(tmp_path, tokenizer):
    (tmp_path / "known.jsonl").write_text("")
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "other.jsonl").write_text(json.dumps(row) + "\n")
    parts = [Part(path=str(tmp_path / name)) for name in ("known.jsonl", "other.jsonl")]
    dataset, counts = mix(parts, tokenizer, 64, 1, 0)
    assert len(dataset) == 1 and any("known.jsonl: 0 of 0 rows" in line for line in counts.lines)
