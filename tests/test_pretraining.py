"""Packed rows are a pure function of the seed, sources keep their shares, and accumulation changes nothing."""

import json

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model, tiny_tokenizer
from transformers import set_seed

from crawl2chat.data.tokens import PackedRows, Source, Tokens, held_out, write_tokens
from crawl2chat.pretraining import PretrainingArguments, PretrainingTrainer
from crawl2chat.protocol import END_OF_TEXT

LENGTH = 8


def source(name: str, first: int, tokens: int) -> Tokens:
    return Tokens(name, np.arange(first, first + tokens, dtype=np.uint16), tokens, 1, [])


def rows(count: int, seed: int = 0, weights: tuple[float, float] = (3, 1)) -> PackedRows:
    return PackedRows([source("a", 0, 200), source("b", 1000, 400)], weights, LENGTH, count, seed)


def test_sources_take_turns_by_their_weights():
    packed = rows(100)
    from_a = sum(int(packed[i]["input_ids"][0]) < 1000 for i in range(100))
    assert from_a == 75
    # after any number of rows, not only at the end
    assert abs(sum(int(packed[i]["input_ids"][0]) < 1000 for i in range(10)) - 7.5) <= 1


def test_a_rows_place_in_the_run_is_one_number():
    whole, alone = rows(90), rows(90)
    for i in (89, 3, 40):  # another order of asking, and no row before it asked for
        assert torch.equal(alone[i]["input_ids"], whole[i]["input_ids"])
    longer = rows(200)
    assert all(torch.equal(longer[i]["input_ids"], whole[i]["input_ids"]) for i in range(90))


def test_another_seed_is_another_order():
    assert any(not torch.equal(rows(40)[i]["input_ids"], rows(40, seed=1)[i]["input_ids"]) for i in range(40))


def test_an_epoch_visits_every_row_once():
    packed = PackedRows([source("a", 0, 200)], [1.0], LENGTH, 48, 0)
    per_epoch = 200 // LENGTH - 1
    first = sorted(int(packed[i]["input_ids"][0]) for i in range(per_epoch))
    assert len(set(first)) == per_epoch
    assert set(np.diff(first)) == {LENGTH}  # side by side, none twice


def test_rows_are_cut_whole_from_the_stream():
    packed = rows(60)
    for i in range(60):
        ids = packed[i]["input_ids"]
        assert ids.shape == (LENGTH,) and torch.equal(ids, ids[0] + torch.arange(LENGTH))


def test_a_source_shorter_than_two_rows_is_refused(capsys):
    with pytest.raises(SystemExit, match="a: 15 tokens are fewer than two rows of 8"):
        PackedRows([source("a", 0, 15)], [1.0], LENGTH, 4, 0)


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    lines = [json.dumps({"text": f"Page {i} says that Paris is in France.", "id": f"page/{i}"}) for i in range(200)]
    (folder / "0.jsonl").write_text("\n".join(lines))
    return Source("pages", str(folder))


def test_held_out_documents_are_in_no_training_token(tmp_path, shards):
    tokenizer = tiny_tokenizer()
    tokens = write_tokens(shards, tokenizer, tmp_path / "tokens", 0.1, 0)
    apart = [i for i in range(200) if held_out(f"page/{i}", 0.1)]
    assert 5 < len(apart) < 40 and len(tokens.held_out) == len(apart) and tokens.documents == 200 - len(apart)
    text = tokenizer.decode(tokens.ids.astype(int).tolist())
    assert all(f"Page {i} says" not in text for i in apart)
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    assert int((np.asarray(tokens.ids) == end).sum()) == tokens.documents


def test_tokens_are_written_once_and_again_when_the_shards_change(tmp_path, shards):
    tokenizer, folder = tiny_tokenizer(), tmp_path / "tokens"
    write_tokens(shards, tokenizer, folder, 0.1, 0)
    (first,) = folder.glob("*.bin")
    stamp = first.stat().st_mtime_ns
    write_tokens(shards, tokenizer, folder, 0.1, 0)
    assert first.stat().st_mtime_ns == stamp
    with open(f"{shards.path}/0.jsonl", "a") as handle:
        handle.write("\n" + json.dumps({"text": "One more page.", "id": "page/200"}))
    write_tokens(shards, tokenizer, folder, 0.1, 0)
    assert len(list(folder.glob("*.bin"))) == 2


def train(tmp_path, batch: int, accumulation: int) -> PretrainingTrainer:
    set_seed(0)
    tokenizer = tiny_tokenizer()
    pages = Tokens("pages", np.arange(4000, dtype=np.uint16) % 400, 4000, 1, ["Paris is in France."])
    args = PretrainingArguments(
        output_dir=str(tmp_path / f"{batch}x{accumulation}"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=3,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = PretrainingTrainer(
        model=tiny_model(tokenizer),
        args=args,
        train_dataset=PackedRows([pages], [1.0], 16, 12, 0),
        eval_dataset=[{"text": "Paris is in France.", "source": "pages"}, {"text": "12 + 34 = 46", "source": "sums"}],
        processing_class=tokenizer,
        shares={"pages": 3.0, "sums": 1.0},
        prompts=["The capital of"],
    )
    trainer.train()
    return trainer


def test_accumulating_four_batches_of_one_is_one_batch_of_four(tmp_path):
    losses = [
        [row["loss"] for row in train(tmp_path, batch, accumulation).state.log_history if "loss" in row]
        for batch, accumulation in ((4, 1), (1, 4))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_evaluation_weighs_sources_by_their_share_and_keeps_samples(tmp_path):
    trainer = train(tmp_path, 4, 1)
    scores = trainer.evaluate()
    expected = (3 * scores["eval_bits_per_byte_pages"] + scores["eval_bits_per_byte_sums"]) / 4
    assert scores["eval_bits_per_byte"] == pytest.approx(expected)
    (sample,) = (tmp_path / "4x1/samples.jsonl").read_text().splitlines()
    assert json.loads(sample)["step"] == 3 and json.loads(sample)["prompt"] == "The capital of"


def test_the_lean_loss_is_the_models_own(tmp_path):
    trainer = train(tmp_path, 4, 1)
    ids = torch.randint(30, 300, (4, 16))
    with torch.no_grad():
        lean = trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids})
        own = trainer.model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(lean, own, rtol=1e-4, atol=1e-4)
