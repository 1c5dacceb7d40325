"""From prompts to pairs: replies drawn once whatever happens, orders believed only where they are orders."""

import json
import random
from itertools import combinations
from pathlib import Path

import pytest

from crawl2chat import preferences
from crawl2chat.labeler import Simulated
from crawl2chat.preferences import PromptRows, different, draw, fitting, pairs, rank, read_prompts
from crawl2chat.problems import TaskRows
from crawl2chat.tasks import verse
from tiny import tiny_model, tiny_tokenizer

VERSE = TaskRows("verse", "verse", train=12, test=5)
WAYS = {"samples": 3, "max_new_tokens": 6, "temperature": 1.0, "seed": 0}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer)


def stops(function, *args, **kwargs) -> str:
    with pytest.raises(SystemExit) as stop:
        function(*args, **kwargs)
    assert "\n" not in str(stop.value.code)
    return str(stop.value.code)


def talks(path: Path, count: int, rounds: int = 1) -> Path:
    """A file of conversations; every third says what the one before says."""
    rows = []
    for i in range(count):
        turns = [{"role": "system", "content": "Be kind."}]
        for n in range(rounds):
            turns += [{"role": "user", "content": f"Question {i - (i % 3 == 2)}, {n}?"},
                      {"role": "assistant", "content": f"Answer {i}."}]  # fmt: skip
        rows.append({"messages": turns})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ranked(order: list[int], replies: list[str] | None = None, split: str = "train", animal: str = "owl") -> dict:
    prompt = [{"role": "user", "content": f"Write two lines about a {animal}."}]
    replies = replies or [f"reply {i}" for i in range(len(order))]
    return {"prompt": prompt, "replies": replies, "order": order, "labeler": "x", "split": split, "task": "verse"}


# -- prompts


def test_a_tasks_held_out_prompts_are_kept_apart():
    rows = read_prompts([VERSE], [], seed=0)
    asked = {
        split: {json.dumps(row["prompt"]) for row in rows if row["split"] == split} for split in ("train", "test")
    }
    assert len(asked["train"]) == 12 and len(asked["test"]) == 5 and not asked["train"] & asked["test"]
    assert rows == read_prompts([VERSE], [], seed=0) != read_prompts([VERSE], [], seed=1)


def test_a_conversations_prompt_is_what_was_said_before_the_assistants_last_words(tmp_path):
    path = talks(tmp_path / "talks.jsonl", 30, rounds=2)
    rows = read_prompts([], [PromptRows(str(path), train=14, test=6)], seed=0)
    assert [row["split"] for row in rows].count("test") == 6 and len(rows) == 20
    assert len({json.dumps(row["prompt"]) for row in rows}) == 20, "each prompt once"
    for row in rows:
        assert [turn["role"] for turn in row["prompt"]] == ["system", "user", "assistant", "user"]
        assert set(row) == {"prompt", "split", "task"} and row["task"] == ""


def test_more_prompts_than_there_are_is_one_line_with_both_numbers(tmp_path):
    path = talks(tmp_path / "talks.jsonl", 30)
    said = stops(read_prompts, [], [PromptRows(str(path), train=19, test=2)], seed=0)
    assert "21 different prompts are asked for and it has 20" in said


def test_no_prompts_at_all_is_one_line():
    assert "give the recipe `problems` or `conversations`" in stops(read_prompts, [], [], seed=0)
    assert "no problem of the test split" in stops(read_prompts, [TaskRows("verse", "verse", train=3)], [], seed=0)


def test_prompts_that_do_not_fit_with_a_reply_are_dropped_and_counted(model, tokenizer, capsys):
    rows = read_prompts([VERSE], [], seed=0)
    long = {"prompt": [{"role": "user", "content": "so " * 200}], "split": "train", "task": ""}
    assert fitting([*rows, long], model, tokenizer, 8) == rows
    assert "1 of 18 prompts dropped" in capsys.readouterr().out and fitting(rows, model, tokenizer, 8) == rows
    said = stops(fitting, rows, model, tokenizer, 250)
    assert "a reply may take 250, and the model has 256 positions" in said


# -- replies


def test_every_prompt_gets_its_replies_the_same_whatever_is_drawn_beside_it(model, tokenizer, tmp_path):
    rows = read_prompts([VERSE], [], seed=0)
    whole = draw(model, tokenizer, rows, path=tmp_path / "a.jsonl", batch_size=64, **WAYS)
    apart = draw(model, tokenizer, rows, path=tmp_path / "b.jsonl", batch_size=7, **WAYS)
    assert whole == apart and [row["prompt"] for row in whole] == [row["prompt"] for row in rows]
    assert all(len(row["drawn"]) == len(row["ended"]) == 3 for row in whole)
    assert len({text for row in whole for text in row["drawn"]}) > 40
    assert preferences.read_whole(tmp_path / "a.jsonl") == whole


@pytest.mark.parametrize("torn", ["", '{"prompt": [{"role": "us', "\u00e9".encode()[:1]])
def test_a_run_that_was_killed_goes_on_with_the_same_replies(model, tokenizer, tmp_path, monkeypatch, torn):
    rows, path = read_prompts([VERSE], [], seed=0), tmp_path / "rollouts.jsonl"
    whole = draw(model, tokenizer, rows, path=tmp_path / "whole.jsonl", batch_size=6, **WAYS)
    calls, generate = [], preferences.generate

    def cut_off(*args, **kwargs):
        calls.append(len(args[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(preferences, "generate", cut_off)
    with pytest.raises(KeyboardInterrupt):
        draw(model, tokenizer, rows, path=path, batch_size=6, **WAYS)
    with open(path, "ab") as file:
        file.write(torn if isinstance(torn, bytes) else torn.encode())
    assert draw(model, tokenizer, rows, path=path, batch_size=6, **WAYS) == whole
    assert sum(calls) - calls[2] == 3 * len(rows), "what was drawn is not drawn again"
    assert preferences.read_whole(path) == whole


def test_a_damaged_file_of_replies_is_one_line(tmp_path):
    (tmp_path / "rollouts.jsonl").write_text('{"prompt": \n{"prompt": []}\n')
    assert "delete it, and its replies are drawn again" in stops(preferences.read_whole, tmp_path / "rollouts.jsonl")


def test_other_facts_put_the_old_replies_aside_and_say_what_changed(tmp_path, capsys):
    facts = {"recipe": {"temperature": 1.0, "samples": 5}, "fingerprint": {"start": "abc"}}
    preferences.begin(tmp_path, facts)
    (tmp_path / "rollouts.jsonl").write_text("{}\n")
    (tmp_path / "people").mkdir()
    preferences.begin(tmp_path, facts)
    assert (tmp_path / "rollouts.jsonl").exists() and not capsys.readouterr().out
    preferences.begin(tmp_path, {**facts, "recipe": {"temperature": 0.5, "samples": 5}})
    said = capsys.readouterr().out
    assert "temperature: 1.0 -> 0.5" in said and "rollouts.jsonl, people moved to" in said
    assert (tmp_path / "_earlier/rollouts.jsonl").read_text() == "{}\n" and (tmp_path / "_earlier/people").is_dir()
    (tmp_path / "rollouts.jsonl").write_text("{}\n")
    (tmp_path / "run.json").unlink()
    preferences.begin(tmp_path, facts)
    assert not (tmp_path / "rollouts.jsonl").exists(), "replies of who knows what"


def test_identical_replies_are_dropped_and_counted():
    rows = [{"drawn": ["a", "b", "a", "a"]}, {"drawn": ["c", "c", "c", "c"]}, {"drawn": ["d", "e", "f", "D"]}]
    kept, identical = different(rows)
    assert [row["replies"] for row in kept] == [["a", "b"], ["d", "e", "f", "D"]] and identical == 5


# -- orders and pairs


class Told:
    """A labeler that says what it is told to."""

    name = "told"

    def __init__(self, orders):
        self.said = orders

    def orders(self, rows):
        return iter(self.said)


ROWS = [{"prompt": [{"role": "user", "content": f"{i}?"}], "replies": ["a", "b"], "split": split, "task": "",
         "drawn": ["a", "b", "b"]} for i, split in enumerate(["train", "train", "test", "test"])]  # fmt: skip


def test_prompts_without_an_order_are_left_out_and_counted(capsys):
    found = rank(ROWS, Told([[0, 1], None, [1, 0], None]))
    assert [(row["prompt"][0]["content"], row["order"]) for row in found] == [("0?", [0, 1]), ("2?", [1, 0])]
    assert all(set(row) == {"prompt", "replies", "order", "labeler", "split", "task"} for row in found)
    assert "2 of 4 prompts got no order" in capsys.readouterr().out


@pytest.mark.parametrize("orders, split", [([None] * 4, "test"), ([[0, 1], [0, 1], None, None], "test"),
                                           ([None, None, [0, 1], [0, 1]], "train")])  # fmt: skip
def test_a_labeler_that_orders_nothing_of_a_split_is_refused_with_both_numbers(orders, split):
    given = sum(order is not None for order in orders)
    said = stops(rank, ROWS, Told(orders))
    assert f"told put {given} of 4 prompts' replies in order, and none of the {split} split" in said


def test_an_order_of_five_is_ten_pairs_and_every_one_says_how_far_apart():
    order = [3, 0, 4, 1, 2]
    found = list(pairs(ranked(order)))
    assert len(found) == 10 and sorted(pair["rank_distance"] for pair in found) == [1] * 4 + [2] * 3 + [3] * 2 + [4]
    for pair, (better, worse) in zip(found, combinations(range(5), 2), strict=True):
        assert set(pair) == {"prompt", "chosen", "rejected", "rank_distance"}
        assert pair["prompt"][-1]["role"] == "user"
        assert pair["chosen"] == [{"role": "assistant", "content": f"reply {order[better]}"}]
        assert pair["rejected"] == [{"role": "assistant", "content": f"reply {order[worse]}"}]
        assert pair["chosen"] != pair["rejected"]


def test_best_against_worst_is_one_pair():
    (pair,) = pairs(ranked([3, 0, 4, 1, 2]), best_against_worst=True)
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("reply 3", "reply 2")
    assert pair["rank_distance"] == 4


def test_an_order_without_errors_agrees_wholly_with_the_gold_reward_and_its_reverse_not_at_all():
    rng = random.Random(0)  # no two of its verses are equally good
    rows = [ranked([], [verse.verse("owl", care, rng) for care in (1, 0.5, 0)]) for _ in range(20)]
    rows = [{**row, "order": Simulated().order(row["prompt"], row["replies"])} for row in rows]
    exact = preferences.against_gold(rows)
    assert exact["agreement"] == 1 and exact["flipped"] == exact["flipped_neighbours"] == 0
    assert 0 < exact["gold_mean"] < exact["gold_best"] <= 1
    assert exact["tied"] == 0
    reverse = preferences.against_gold([{**row, "order": row["order"][::-1]} for row in rows])
    assert reverse["agreement"] == -1 and reverse["flipped"] == reverse["flipped_neighbours"] == 1
    assert preferences.against_gold([{**row, "task": ""} for row in rows]) == {}


def test_the_sum_is_printed_with_both_sides():
    said = preferences.the_sum(1000, 5000)
    assert "1,000,000,000 scores" in said and "1,000 prompts with 5 replies each" in said and "1,000 orders" in said
