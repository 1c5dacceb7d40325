"""Supervised finetuning on a mixture of conversations, loss on the assistant's words alone; full weights or LoRA.

Reads: a base model, conversations ({"messages"}) and pages ({"text"}) from folders or the hub
Writes: model (or adapter), tokenizer, log_history.json, metrics.json

accelerate launch scripts/sft.py recipes/sft.yaml
accelerate launch --config_file accelerate_configs/cpu.yaml scripts/sft.py recipes/laptop/sft.yaml
"""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from transformers import set_seed
from trl import ModelConfig, get_peft_config

from crawl2chat.drift import digest_rows, digest_weights
from crawl2chat.finetuning import FinetuningTrainer, SFTArguments
from crawl2chat.launch import check_launch
from crawl2chat.mixture import Part, mix
from crawl2chat.model import check_fit, check_weights, fast_on_cpu, load_model, quantization
from crawl2chat.protocol import load_tokenizer, turn_end
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import finish, write_text


@dataclass
class MixtureConfig:
    """What is trained on."""

    datasets: list[Part] = field(metadata={"help": "the mixture: path, fraction of its rows"})
    deduplicate: bool = field(
        default=False, metadata={"help": "drop conversations that say the same as an earlier one of the mixture"}
    )
    held_out: list[str] = field(
        default_factory=list,
        metadata={
            "help": "questions of the evaluation (test.jsonl, or folders): rows that hold one go",
            "reads": True,
        },
    )


RECIPE = (MixtureConfig, SFTArguments, ModelConfig)


def main(config: MixtureConfig, training_args: SFTArguments, model_args: ModelConfig) -> None:
    check_launch(training_args)
    set_seed(training_args.seed)
    fast_on_cpu(training_args)

    # tokenizer: a turn's end is the end of the text from here on
    tokenizer = load_tokenizer(model_args.model_name_or_path)
    tokenizer.eos_token = turn_end(tokenizer)

    # dataset
    with training_args.main_process_first(desc="mixture"):
        train_dataset, counts = mix(
            config.datasets, tokenizer, training_args.max_length, training_args.train_batch_size, training_args.seed,
            repeats=not config.deduplicate, held_out=config.held_out,
            batches_a_step=training_args.gradient_accumulation_steps * training_args.world_size,
        )  # fmt: skip
    for line in counts.lines:
        print(f"sft: {line}")

    # model
    attention = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    model = load_model(
        model_args.model_name_or_path, revision=model_args.model_revision, dtype=torch.float32,
        **attention, **quantization(model_args, training_args),
    )  # fmt: skip
    check_fit(model, tokenizer, model_args.model_name_or_path)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id

    # trainer
    trainer = FinetuningTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        fingerprint={"rows": digest_rows(train_dataset), "base": digest_weights(model)},
    )

    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)

    # train
    result = trainer.run()

    # save
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    output = Path(training_args.output_dir)
    check_weights(output)
    write_text(output / "log_history.json", json.dumps(trainer.state.log_history))
    rows = [{"step": 0}, *(row for row in trainer.state.log_history if "loss" in row)]
    last = [(row["step"] - before["step"], row["loss"]) for before, row in pairwise(rows)][-5:]  # (steps, their mean)
    loss = sum(n * mean for n, mean in last) / sum(n for n, _ in last) if last else result.training_loss
    share = counts.supervised / counts.tokens
    rows_a_step = trainer.get_total_train_batch_size(training_args)
    finish(
        output,
        {
            "train_loss": loss,
            "rows": counts.rows,
            "rows_truncated": counts.truncated,
            "rows_without_answer": counts.without_answer,
            "rows_repeated": counts.repeated,
            "rows_contaminated": counts.contaminated,
            "packing_efficiency": counts.packed if training_args.packing else counts.padded,
            "tokens": counts.tokens,
            "supervised_token_share": share,
            "steps": trainer.state.global_step,
            "trained_parameters": trained,
            "rows_per_second": trainer.state.global_step * rows_a_step / trainer.seconds,
        },
        read=f"{model_args.model_name_or_path}, {len(config.datasets)} datasets",
        wrote=str(output),
        headline=f"loss {loss:.3f} on {share:.0%} of the tokens, {counts.rows:,} rows",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
