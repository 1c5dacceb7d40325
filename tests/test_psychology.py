"""What is measured of a base model: recall on a model that has learned one passage by heart, and distinctness."""

import json

import pytest
import torch

from crawl2chat.protocol import END_OF_TEXT
from crawl2chat.psychology import (
    Recall,
    Way,
    continue_often,
    distinct_2,
    next_tokens,
    recall_table,
    recite,
    training_texts,
    verbatim_recall,
)
from tiny import tiny_model, tiny_tokenizer

LEARNED = "The capital of France is Paris and strawberry has ten letters"
OTHER = "Hello! How can I help you today? print(123 * 456) is small"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(END_OF_TEXT)


@pytest.fixture(scope="module")
def model(tokenizer):
    """A tiny model that has read LEARNED, after END_OF_TEXT, until it knew nothing else."""
    torch.manual_seed(0)
    model = tiny_model(tokenizer).train()
    ids = torch.tensor([tokenizer(END_OF_TEXT + LEARNED)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def world(tmp_path):
    """Two training sources, held-out documents and passages of known repetition, as files."""

    def rows(name, values):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in values))
        return tmp_path / name

    ordinary = [{"text": f"{OTHER} {i}", "id": f"page/{i}"} for i in range(20)]
    copies = [{"text": LEARNED, "id": f"copy/{i}"} for i in range(10)]
    return Recall(
        train=[str(rows("prose/a.jsonl", ordinary).parent), str(rows("recital/a.jsonl", copies).parent)],
        heldout=str(
            rows("heldout.jsonl", [{"text": OTHER, "source": "prose"}, {"text": LEARNED, "source": "drills"}])
        ),
        source="prose",
        held_out_share=0.0001,
        repeated=str(rows("recital.jsonl", [{"text": OTHER, "times": 0}, {"text": LEARNED, "times": 64}])),
        documents=30,
        prompt_tokens=4,
        continued_tokens=6,
    )


def test_what_was_learned_by_heart_is_recited_and_nothing_else(model, tokenizer):
    known, unknown = recite(model, tokenizer, [LEARNED, OTHER], 4, 6)
    assert known["matched"] == 6 and known["continued"] == known["text"]
    assert LEARNED.startswith(known["prompt"] + known["text"])
    assert unknown["matched"] < 6 and unknown["continued"] != unknown["text"]


def test_matched_tokens_are_those_before_the_first_wrong_one(model, tokenizer):
    text = LEARNED.replace("ten letters", "Paris 123")
    ids, learned = (tokenizer(words)["input_ids"] for words in (text, LEARNED))
    same = next(i for i, (a, b) in enumerate(zip(ids, learned, strict=False)) if a != b)
    (row,) = recite(model, tokenizer, [text], same - 3, 5)
    assert row["matched"] == 3


def test_a_document_too_short_to_be_asked_about_is_left_out(model, tokenizer):
    assert recite(model, tokenizer, ["Hi", LEARNED], 4, 6)[0]["matched"] == 6
    assert recite(model, tokenizer, ["Hi"], 4, 6) == []


def test_training_recall_counts_documents_as_they_stand_in_the_corpus(model, tokenizer, world):
    metrics, found = verbatim_recall(model, tokenizer, world)
    assert metrics["verbatim_recall_train"] == pytest.approx(10 / 30)  # ten of thirty documents are copies
    assert metrics["verbatim_recall/recital"] == 1 and metrics["verbatim_recall/prose"] == 0
    assert metrics["verbatim_recall_heldout"] == 0 and found["sets"]["held out"]["documents"] == 1
    assert metrics["verbatim_recall_times/0"] == 0 and metrics["verbatim_recall_times/64"] == 1
    assert [one["times"] for one in found["repeated"]] == [0, 64]
    assert metrics["matched_tokens_times/64"] == 6 > metrics["matched_tokens_times/0"]


def test_the_table_names_every_set_and_shows_what_was_continued(model, tokenizer, world):
    table = recall_table(verbatim_recall(model, tokenizer, world)[1])
    assert all(name in table for name in ("prose", "recital", "held out", "read 0 times", "read 64 times"))
    assert "100.0% of    1 documents" in table and "(6 tokens right)" in table


def test_documents_held_out_from_training_are_not_asked_as_training_documents(world):
    world.held_out_share = 0.4999
    texts = training_texts(world, 0)
    assert 0 < sum(map(len, texts.values())) < 30


def test_the_same_seed_draws_the_same_documents(world):
    world.documents = 5
    assert training_texts(world, 3) == training_texts(world, 3)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"source": "news"}, "no document of the source 'news'"),
        ({"heldout": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"continued_tokens": 5000}, "no training document has 5004 tokens"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(model, tokenizer, world, change, says):
    for key, value in change.items():
        setattr(world, key, value)
    with pytest.raises(SystemExit) as stop:
        verbatim_recall(model, tokenizer, world)
    assert says in stop.value.code and "\n" not in stop.value.code


def test_continuations_differ_more_the_hotter_they_are_drawn(tokenizer):
    model = tiny_model(tokenizer)
    prompts = ["The capital of", "12 + 34 ="]
    found = [continue_often(model, tokenizer, prompts, Way("", heat), 8, 12)[0] for heat in (0.0, 0.05, 2.0)]
    shares = [numbers["distinct_continuations"] for numbers in found]
    assert shares[0] == pytest.approx(1 / 8) and shares[0] <= shares[1] <= shares[2] == 1
    assert found[0]["distinct_2"] < found[2]["distinct_2"]


def test_a_continuation_begins_a_new_document(model, tokenizer):
    numbers, rows = continue_often(model, tokenizer, ["The capital of"], Way("greedy", 0.0), 2, 4)
    assert LEARNED.startswith("The capital of" + rows[0]["texts"][0]) and numbers["distinct_continuations"] == 0.5


def test_next_tokens_come_the_likeliest_first_with_the_entropy_of_all(model, tokenizer):
    (one,) = next_tokens(model, tokenizer, ["The capital of"], 5)
    values = [token["probability"] for token in one["tokens"]]
    assert values == sorted(values, reverse=True) and values[0] > 0.9 and one["entropy_bits"] < 1


def test_distinct_2_is_the_share_of_different_pairs_of_words():
    assert distinct_2(["a b c", "a b d"]) == 3 / 4
    assert distinct_2(["a b", "a b"]) == 1 / 2
    assert distinct_2(["", "one"]) == 0
