"""SFT's Trainer: quicker on a CPU, and its loss and gradients are TRL's own."""

import random

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from crawl2chat.finetuning import FinetuningTrainer, SFTArguments
from tiny import tiny_model, tiny_tokenizer


def rows(lengths: list[int]) -> list[dict]:
    """Rows of these lengths of which the second half bears loss."""
    rng = random.Random(0)
    ids = [[rng.randrange(30, 250) for _ in range(length)] for length in lengths]
    return [{"input_ids": row, "labels": [-100] * (len(row) // 2) + row[len(row) // 2 :]} for row in ids]


def trainer_of(kind: type, arguments: type, folder, data: list[dict], **own):
    args = arguments(
        output_dir=str(folder), per_device_train_batch_size=4, use_cpu=True, report_to="none", bf16=False,
        gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, **own,
    )  # fmt: skip
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer).train()
    return kind(model=model, args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer)


def step(trainer) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a training step on the whole data, collated as the Trainer does it."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss = trainer.training_step(trainer.model, batch, (batch["labels"][:, 1:] != -100).sum())
    return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("lengths", [[24, 24, 24, 24], [6, 40, 12, 30]])
@pytest.mark.parametrize("pad", [None, 8])
def test_loss_and_gradients_of_a_batch_are_trls_own(tmp_path, lengths, pad):
    data = rows(lengths)
    loss, gradients = step(trainer_of(FinetuningTrainer, SFTArguments, tmp_path, data, pad_to_multiple_of=pad))
    expected, theirs = step(trainer_of(SFTTrainer, SFTConfig, tmp_path, data))
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_two_steps_end_in_trls_own_weights(tmp_path):
    keys = {"learning_rate": 1e-3, "num_train_epochs": 1, "optim": "adamw_torch", "seed": 0}
    ours = trainer_of(FinetuningTrainer, SFTArguments, tmp_path / "a", rows([6, 40, 12, 30] * 2), **keys)
    theirs = trainer_of(SFTTrainer, SFTConfig, tmp_path / "b", rows([6, 40, 12, 30] * 2), **keys)
    assert ours.train().training_loss == pytest.approx(theirs.train().training_loss, rel=1e-5)
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
