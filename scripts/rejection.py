"""Practice by rejection sampling: try problems many times, keep the best right try, train on it, and that in rounds.

Reads: a chat model; problems of the tasks; with tools a search index; perhaps a reward model
Writes: the last round's model, rounds.json, rollouts.jsonl, metrics.json; round-<n>/ (model, practice.json, ...)

accelerate launch scripts/rejection.py recipes/rejection.yaml
accelerate launch --config_file accelerate_configs/cpu.yaml scripts/rejection.py recipes/laptop/rejection.yaml
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers.utils.logging import disable_progress_bar

from crawl2chat import rejection
from crawl2chat.drift import digest, digest_rows, digest_weights
from crawl2chat.finetuning import FinetuningTrainer, SFTArguments
from crawl2chat.launch import check_launch
from crawl2chat.model import check_fit, check_weights, fast_on_cpu, fastest_attention, load_model, save_model
from crawl2chat.problems import TaskRows, read_problems
from crawl2chat.protocol import load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.rejection import Rule, round_folder
from crawl2chat.stage import finish, write_text
from crawl2chat.tools import open_tools


@dataclass
class RejectionConfig:
    """What is practised, how often, and which try is kept."""

    model_name_or_path: str = field(metadata={"help": "the chat model that practises"})
    problems: list[TaskRows] = field(metadata={"help": "train: problems to practise on, test: held out to measure"})
    rounds: int = field(default=3, metadata={"help": "times of trying, choosing and training", "ge": 1})
    problems_per_round: int = field(default=128, metadata={"help": "new problems a round", "ge": 1})
    samples: int = field(default=15, metadata={"help": "tries a problem, and k of pass@k", "ge": 2})
    choose: Rule = field(default="short", metadata={"help": "which right try: the shortest, any, or the one that"})
    reward_model: str | None = field(default=None, metadata={"help": "... this one marks highest", "reads": True})
    from_start: bool = field(default=False, metadata={"help": "a round trains the first model on all rows so far"})
    temperature: float = field(default=1.0, metadata={"help": "of the tries", "gt": 0})
    max_new_tokens: int = field(default=128, metadata={"help": "tokens a try may take", "ge": 1})
    batch_size: int = field(default=64, metadata={"help": "tries written at once", "ge": 1})
    tools: list[str] = field(default_factory=list, metadata={"help": "what a try may call: python, search"})
    search_index: str | None = field(default=None, metadata={"help": "the index search looks into", "reads": True})


RECIPE = (RejectionConfig, SFTArguments)
MEASURED = ("pass_at_1", "pass_at_k", "greedy", "mean_length")
TOTALS = ("kept", "all_right", "all_wrong", "unusable", "ungraded", "rollout_seconds", "training_seconds")


def train(rows: list[dict], start: str | Path, tokenizer, training_args: SFTArguments, folder: Path) -> float:
    """Finetune the model in `start` on the rows and write it to `folder`. Returns seconds."""
    args = copy.copy(training_args)
    args.output_dir, args.resume_from_checkpoint = str(folder), None
    train_dataset = Dataset.from_list(rows)
    attention = fastest_attention(args.device, max(len(row["input_ids"]) for row in rows))
    model = load_model(start, dtype=torch.float32, **({"attn_implementation": attention} if attention else {}))
    trainer = FinetuningTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        processing_class=tokenizer,
        fingerprint={"rows": digest_rows(train_dataset), "base": digest_weights(model)},
    )
    trainer.run()
    trainer.save_model()
    if trainer.is_world_process_zero():
        check_weights(folder)
        write_text(folder / "log_history.json", json.dumps(trainer.state.log_history))
    return trainer.seconds


def main(config: RejectionConfig, training_args: SFTArguments) -> None:
    check_launch(training_args)
    fast_on_cpu(training_args)
    disable_progress_bar()  # of the loading of weights
    rejection.check_keys(config.choose, config.reward_model, training_args)
    main_process, seed, output = PartialState().is_main_process, training_args.seed, Path(training_args.output_dir)

    # problems, tools
    problems = read_problems(config.problems, "train", seed)
    dealt = rejection.deal(problems, config.rounds, config.problems_per_round, seed)
    held_out = read_problems(config.problems, "test", seed)
    try:
        tools = open_tools(config.tools, config.search_index)
    except (ValueError, OSError, RuntimeError) as error:
        rejection.stop(f"rejection: {error}")
    ways = {key: getattr(config, key) for key in ("samples", "temperature", "max_new_tokens", "batch_size")}
    ways |= {"tools": tools, "progress": main_process}

    # tokenizer, models
    start, device = config.model_name_or_path, training_args.device
    tokenizer = load_tokenizer(start)
    rejection.check_chat_model(tokenizer, start)
    model = load_model(start, dtype=torch.float32).to(device)
    check_fit(model, tokenizer, start)
    score = rejection.open_reward_model(config.reward_model, device) if config.reward_model else None

    # rounds: what an earlier start of this command has done is not done again
    fingerprint = {"start": digest_weights(model), "problems": digest(json.dumps([problems, held_out]))}
    rejection.begin(output, config, training_args, fingerprint)
    rows, last = [], start
    for number in range(config.rounds + 1):
        folder, asked, seconds = round_folder(output, number), dealt[number - 1], 0.0
        practice = None
        if number:
            rule = {"rule": config.choose, "max_length": training_args.max_length, "score": score}
            practice = rejection.practise(model, tokenizer, asked, folder, seed=f"{seed} {number}", **rule, **ways)
            rows = [*rows, *practice.rows] if config.from_start else practice.rows
        done = rejection.is_done(folder)
        if rows and not done:
            seconds = train(rows, start if config.from_start else last, tokenizer, training_args, folder)
        elif number and not done and main_process:  # all tries at all problems are right: nothing is left to learn
            save_model(model, tokenizer, folder)
        PartialState().wait_for_everyone()
        last = folder if number else start
        model = load_model(last, dtype=torch.float32).to(device)
        if not done:
            numbers = rejection.measure(model, tokenizer, held_out, seed=seed, **ways)
            rejection.end_round(output, number, numbers, practice, seconds)

    # save
    if not main_process:
        return
    save_model(model, tokenizer, output)
    check_weights(output)
    curve = rejection.read_curve(output, config.rounds)
    first, now = curve[0], curve[-1]
    metrics = {f"{key}_{when}": row[key] for key in MEASURED for when, row in (("first", first), ("last", now))}
    totals = {key: sum(row[key] for row in curve) for key in TOTALS}
    finish(
        output,
        {"rounds": config.rounds, **metrics, **totals, "rollouts": now["rollouts"]},
        read=f"{start}, {len(problems):,} problems",
        wrote=str(output),
        headline=f"pass@1 {first['pass_at_1']:.2f} -> {now['pass_at_1']:.2f} on {len(held_out)} held-out problems, "
        f"{now['rollouts']:,} tries, {totals['kept']:,} kept",
    )
    rejection.mark_rounds(output)


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
