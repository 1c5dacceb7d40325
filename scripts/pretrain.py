"""Train a base model from random weights on packed rows of a mixture of sources.

Reads: a tokenizer, shards of scripts/data.py or datasets on the hub
Writes: model, tokenizer, corpus.json, heldout.jsonl, samples.jsonl, log_history.json, metrics.json

accelerate launch scripts/pretrain.py recipes/pretrain.yaml
accelerate launch --config_file accelerate_configs/cpu.yaml scripts/pretrain.py recipes/laptop/pretrain.yaml
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from transformers import set_seed

from crawl2chat.choices import Choices, questions_of
from crawl2chat.data.tokens import PackedRows, Source, corpus, held_out_texts, write_tokens
from crawl2chat.launch import check_launch
from crawl2chat.model import (
    build_model,
    check_fit,
    check_weights,
    count_parameters,
    fast_on_cpu,
    fastest_attention,
)
from crawl2chat.pretraining import PretrainingArguments, PretrainingTrainer
from crawl2chat.protocol import load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import finish, write_text


@dataclass
class PretrainConfig:
    """The model, the mixture and what is looked at during the run."""

    model: dict = field(metadata={"help": "model_type and that architecture's keys (transformers' names)"})
    tokenizer: str = field(metadata={"help": "a folder of scripts/tokenizer.py", "reads": True})
    datasets: list[Source] = field(metadata={"help": "the mixture"})
    max_length: int = field(default=1024, metadata={"help": "tokens a row", "ge": 8})
    held_out_share: float = field(
        default=0.01, metadata={"help": "share of documents never trained on", "gt": 0, "lt": 0.5}
    )
    held_out_documents: int = field(
        default=64, metadata={"help": "held-out documents scored a source", "gt": 0, "le": 1000}
    )
    choices: list[Choices] = field(default_factory=list, metadata={"help": "scored at every evaluation"})
    prompts: list[str] = field(default_factory=list, metadata={"help": "continued at every evaluation"})


RECIPE = (PretrainConfig, PretrainingArguments)


def main(config: PretrainConfig, training_args: PretrainingArguments) -> None:
    check_launch(training_args)
    set_seed(training_args.seed)
    fast_on_cpu(training_args)

    # tokenizer
    tokenizer = load_tokenizer(config.tokenizer)

    # data: every source encoded once, rows dealt by weight
    rows = training_args.max_steps * training_args.train_batch_size * training_args.gradient_accumulation_steps
    rows *= training_args.world_size
    output = Path(training_args.output_dir)
    sources = [
        write_tokens(source, tokenizer, output / "tokens", config.held_out_share, training_args.seed)
        for source in config.datasets
    ]
    weights = [source.weight for source in config.datasets]
    train_dataset = PackedRows(sources, weights, config.max_length, rows, training_args.seed)
    held_out = list(held_out_texts(sources, config.held_out_documents))
    whole = corpus(sources, len(tokenizer))
    if training_args.process_index == 0:
        write_text(output / "heldout.jsonl", "".join(json.dumps(row) + "\n" for row in held_out))
        write_text(output / "corpus.json", json.dumps(whole, indent=1) + "\n")
    for name, epochs in train_dataset.epochs().items():
        print(f"pretrain: {name} is read {epochs:.2f} times")

    # model
    model = build_model(config.model, tokenizer, fastest_attention(training_args.device, config.max_length))
    check_fit(model, tokenizer, config.tokenizer)
    parameters, tokens = count_parameters(model), rows * config.max_length
    print(f"pretrain: {parameters:,} parameters, {tokens:,} tokens")

    # trainer
    shares = {source.name: weight / sum(weights) for source, weight in zip(config.datasets, weights, strict=True)}
    trainer = PretrainingTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=held_out,
        processing_class=tokenizer,
        shares={s.name: shares[s.name] * s.bytes / len(s.ids) for s in sources},
        questions={c.name: questions_of(c, held_out, training_args.seed) for c in config.choices},
        prompts=config.prompts,
        fingerprint={"data": train_dataset.fingerprint(), "model": config.model},
    )

    # train
    trainer.run()
    evaluation = trainer.evaluate()

    # save
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    check_weights(output)
    write_text(output / "log_history.json", json.dumps(trainer.state.log_history))
    losses, speed, mfu = (trainer.logged(key) for key in ("loss", "tokens_per_second", "mfu"))
    speed = median(speed)
    metrics = {
        "parameters": parameters,
        "tokens": tokens,
        "muon": int(training_args.optim == "muon"),
        "real_prose_share": sum(shares[source.name] for source in config.datasets if source.real_prose),
        "train_loss": fmean(losses[-5:]),
        "tokens_per_second": speed,
        "flops_per_second": speed * trainer.flops_per_token,
        **({"mfu": median(mfu)} if mfu else {}),
        **evaluation,
        **{f"corpus/{rung}": whole[rung] for rung in ("bits", "bytes", "tokens")},
        **{f"tokens/{name}": part["tokens"] for name, part in whole["sources"].items()},
        **{f"epochs/{name}": epochs for name, epochs in train_dataset.epochs().items()},
    }
    finish(
        output,
        metrics,
        read=", ".join(source.path for source in config.datasets),
        wrote=str(output),
        headline=f"{evaluation['eval_bits_per_byte']:.3f} bits per byte held out, {speed:,.0f} tokens a second",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
