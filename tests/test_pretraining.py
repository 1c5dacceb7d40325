"""The lean Trainer: accumulation changes nothing, its loss is the model's own, evaluation weighs sources by share."""

import json

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model, tiny_tokenizer
from transformers import set_seed

from crawl2chat.data.tokens import PackedRows, Tokens
from crawl2chat.pretraining import PretrainingArguments, PretrainingTrainer


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
    samples = [json.loads(line) for line in (tmp_path / "4x1/samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [1, 3] and samples[0]["prompt"] == "The capital of"


def test_the_lean_loss_is_the_models_own(tmp_path):
    trainer = train(tmp_path, 4, 1)
    ids = torch.randint(30, 300, (4, 16))
    with torch.no_grad():
        lean = trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids})
        own = trainer.model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(lean, own, rtol=1e-4, atol=1e-4)
