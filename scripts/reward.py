"""A reward model from pairs of replies: the chat model with a head that gives the preferred one the higher number.

Reads: a chat model; pairs of preferences.py (train.jsonl, test.jsonl) or of a set on the hub
Writes: model (or adapter), tokenizer, calibration.json, degenerate.json, scores.jsonl, log_history.json, metrics.json

accelerate launch scripts/reward.py recipes/reward.yaml
accelerate launch --config_file accelerate_configs/cpu.yaml scripts/reward.py recipes/laptop/reward.yaml
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import set_seed
from trl import ModelConfig

from crawl2chat.drift import digest_rows, digest_weights
from crawl2chat.engine import context_length
from crawl2chat.launch import check_launch
from crawl2chat.model import check_fit, check_weights, fast_on_cpu, quantization
from crawl2chat.practice import rows_as_lines
from crawl2chat.protocol import load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.reward_model import (
    REASONS,
    RewardArguments,
    RewardModelTrainer,
    adapter,
    begin,
    by_prompt,
    check_arguments,
    check_tokenizer,
    encode_pairs,
    load_reward_model,
    read_pairs,
)
from crawl2chat.reward_quality import ceiling, measure, shown
from crawl2chat.stage import fail, finish, write_text


@dataclass
class PairsConfig:
    """What is learned from."""

    preferences: str = field(
        metadata={"help": "a folder with train.jsonl and test.jsonl, or owner/name on the hub", "reads": True}
    )


RECIPE = (PairsConfig, RewardArguments, ModelConfig)


def main(config: PairsConfig, training_args: RewardArguments, model_args: ModelConfig) -> None:
    check_launch(training_args)
    check_arguments(training_args)
    fast_on_cpu(training_args)
    max_length = training_args.max_length

    # tokenizer
    tokenizer = load_tokenizer(model_args.model_name_or_path)
    check_tokenizer(tokenizer, model_args.model_name_or_path)

    # dataset: pairs that are alike teach nothing; no prompt of the test is trained on
    test = read_pairs(config.preferences, "test")
    train, dropped = encode_pairs(read_pairs(config.preferences, "train"), tokenizer, max_length, without=test)
    test, dropped_test = encode_pairs(test, tokenizer, max_length)
    train = by_prompt(train, training_args.seed)
    for split, kept, gone in (("train", train, dropped), ("test", test, dropped_test)):
        reasons = "".join(f", {count:,} {reason.replace('_', ' ')} dropped" for reason, count in sorted(gone.items()))
        print(f"reward: {split}: {len(kept):,} pairs{reasons}")
    ids = ("chosen_ids", "rejected_ids")
    datasets = [Dataset.from_list([{key: row[key] for key in ids} for row in rows]) for rows in (train, test)]

    # model: the head is random, so the seed comes first
    set_seed(training_args.seed)
    attention = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    model = begin(
        model_args.model_name_or_path, revision=model_args.model_revision,
        **attention, **quantization(model_args, training_args),
    )  # fmt: skip
    check_fit(model, tokenizer, model_args.model_name_or_path)
    if max_length > context_length(model):
        fail(f"reward: max_length is {max_length}, the model's context {context_length(model)}; lower max_length")

    # trainer
    trainer = RewardModelTrainer(
        model=model,
        args=training_args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1] if training_args.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=adapter(model_args),
        fingerprint={"rows": digest_rows(datasets[0]), "base": digest_weights(model)},
    )

    # train
    trainer.run()
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return

    # measure what was written
    output = Path(training_args.output_dir)
    check_weights(output)
    model, tokenizer = load_reward_model(output)
    sizes = {"max_length": max_length, "batch_size": training_args.per_device_eval_batch_size}
    numbers, calibration, kinds, scored = measure(model.to(training_args.device), tokenizer, train, test, **sizes)
    print(shown(kinds))

    # save
    log, most = trainer.state.log_history, ceiling(config.preferences)
    write_text(output / "calibration.json", json.dumps(calibration, indent=1))
    write_text(output / "degenerate.json", json.dumps(kinds, indent=1))
    write_text(output / "scores.jsonl", rows_as_lines(scored))
    write_text(output / "log_history.json", json.dumps(log))
    finish(
        output,
        {
            **numbers,
            **({"accuracy_ceiling": most} if most is not None else {}),
            "pairs": len(train),
            "pairs_test": len(test),
            **{f"pairs_{reason}": dropped[reason] + dropped_test[reason] for reason in REASONS},
            "train_loss": [row["loss"] for row in log if "loss" in row][-1],
            "steps": trainer.state.global_step,
            "training_seconds": trainer.seconds,
        },
        read=f"{model_args.model_name_or_path}, {len(train):,} pairs of {config.preferences}",
        wrote=str(output),
        headline=f"right on {numbers['accuracy']:.1%} ± {numbers['stderr']:.1%} of {len(test):,} held-out pairs"
        + (f" (the labeler's noise allows {most:.1%})" if most is not None else "")
        + f", length alone {numbers['length_baseline_accuracy']:.1%}",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
