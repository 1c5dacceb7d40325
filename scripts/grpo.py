"""Practice with verifiable rewards: groups of tries at problems, the better ones made likelier; full weights or LoRA.

Reads: a chat model; problems from the tasks, their answers graded by the tasks themselves
Writes: model (or adapter), tokenizer, curve.json, completions.jsonl, log_history.json, metrics.json

accelerate launch scripts/grpo.py recipes/grpo.yaml
accelerate launch --config_file accelerate_configs/cpu.yaml scripts/grpo.py recipes/laptop/grpo.yaml
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import set_seed
from trl import ModelConfig, get_peft_config

from crawl2chat.drift import digest, digest_weights
from crawl2chat.grpo import GRPOArguments, PractisingTrainer, Teacher, completions, curve, imitation, seconds
from crawl2chat.guards import Guards, Thresholds
from crawl2chat.launch import check_launch
from crawl2chat.model import check_fit, check_weights, fast_on_cpu, load_model, quantization
from crawl2chat.practice import Curriculum, rows_as_lines, teachable
from crawl2chat.problems import TaskRows, read_problems
from crawl2chat.protocol import load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.rewards import Reward, load_rewards
from crawl2chat.stage import fail, finish, write_text
from crawl2chat.tools import open_tools


@dataclass
class PracticeConfig:
    """What is practised, what is rewarded, and when to stop."""

    problems: list[TaskRows] = field(metadata={"help": "one entry a family: problems to practise and to hold out"})
    system: str | None = field(default=None, metadata={"help": "a system message before every problem"})
    rewards: list[Reward] = field(
        default_factory=lambda: [Reward("correct")], metadata={"help": "functions of crawl2chat.rewards, weighted"}
    )
    tools: list[str] = field(default_factory=list, metadata={"help": "what replies may call: search, python"})
    search_index: str | None = field(default=None, metadata={"help": "the index search looks into", "reads": True})
    samples: int = field(default=8, metadata={"help": "tries at each held-out problem, before and after", "ge": 2})
    along_the_way: int = field(default=100, metadata={"help": "further held-out problems, tried every eval_steps"})
    curriculum: Curriculum | None = field(default=None, metadata={"help": "leave out what cannot teach yet"})
    guards: Thresholds = field(default_factory=Thresholds, metadata={"help": "when an alarm is raised"})
    stop_on: list[str] = field(default_factory=list, metadata={"help": "alarms that end the run"})
    teacher: Teacher | None = field(default=None, metadata={"help": "whose solutions the start was finetuned on"})


RECIPE = (PracticeConfig, GRPOArguments, ModelConfig)


def main(config: PracticeConfig, training_args: GRPOArguments, model_args: ModelConfig) -> None:
    check_launch(training_args)
    set_seed(training_args.seed)
    fast_on_cpu(training_args)

    # dataset: what is practised; what is held out for the end, and other problems of its split for along the way
    practised = read_problems(config.problems, "train", training_args.seed, config.system)
    held_out = read_problems(config.problems, "test", training_args.seed, config.system)
    asked = {json.dumps(problem["prompt"]) for problem in held_out}
    others = read_problems(config.problems, "test", training_args.seed + 1, config.system)
    others = [problem for problem in others if json.dumps(problem["prompt"]) not in asked][: config.along_the_way]
    try:
        tools = open_tools(config.tools, config.search_index)
    except (ValueError, OSError, RuntimeError) as error:
        fail(f"grpo: {error}")

    # tokenizer, model
    tokenizer = load_tokenizer(model_args.model_name_or_path)
    reward_funcs, training_args.reward_weights = load_rewards(config.rewards, tokenizer)
    attention = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    model = load_model(
        model_args.model_name_or_path, revision=model_args.model_revision, dtype=torch.float32,
        **attention, **quantization(model_args, training_args),
    )  # fmt: skip
    check_fit(model, tokenizer, model_args.model_name_or_path)

    # trainer
    guards = Guards(config.guards, config.stop_on)
    trainer = PractisingTrainer(
        model=model,
        args=training_args,
        reward_funcs=reward_funcs,
        train_dataset=Dataset.from_list(practised),
        eval_dataset=Dataset.from_list(others),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        tools=tools,
        fingerprint={"problems": digest(json.dumps(practised)), "base": digest_weights(model)},
    )
    trainer.callback_handler.callbacks.insert(0, guards)  # before the trackers, which then see its alarms
    # the trackers are callbacks by now; TRL would also log tables, which W&B refuses where some replies alone think
    training_args.report_to = []

    # before: held-out problems, and which problems can teach; a run that goes on finds the same again
    tried = {"tries": config.samples, "temperature": training_args.temperature, "seed": training_args.seed + 1}
    before = trainer.measure(held_out, **tried)
    if config.teacher and trainer.is_world_process_zero():
        ways = {**tried, "max_new_tokens": training_args.max_completion_length, "batch_size": 128}
        taught = imitation(config.teacher, tokenizer, held_out, **ways)
        write_text(Path(training_args.output_dir) / "teacher.json", json.dumps(taught))
    if config.curriculum:
        groups = trainer.try_problems(practised, config.curriculum.tries, training_args.temperature, seed=2)
        practised = teachable(practised, groups, config.curriculum)
        trainer.train_dataset = Dataset.from_list(practised)

    # train
    trainer.run()
    after = trainer.measure(held_out, **tried)

    # save
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    output, log = Path(training_args.output_dir), trainer.state.log_history
    check_weights(output)
    a_step = trainer.get_total_train_batch_size(training_args)
    rows = curve(log, a_step)
    write_text(output / "curve.json", json.dumps(rows, indent=1))
    write_text(output / "log_history.json", json.dumps(log))
    write_text(output / "completions.jsonl", rows_as_lines(completions(output)))
    spent = seconds(log)
    finish(
        output,
        {
            **{f"{key}_{when}": found[key] for when, found in (("before", before), ("after", after)) for key in found},
            "pass_at_1_gain": after["pass_at_1"] - before["pass_at_1"],
            "problems": len(practised),
            "steps": trainer.state.global_step,
            "rollouts": trainer.state.global_step * a_step,
            "rollout_share": spent["rollout"] / sum(spent.values()),
            "rollouts_per_second": trainer.state.global_step * a_step / sum(spent.values()),
            "training_seconds": trainer.seconds,
            "alarms": len(guards.watch.alarms),
        },
        read=f"{model_args.model_name_or_path}, {len(practised):,} problems",
        wrote=str(output),
        headline=f"pass@1 {before['pass_at_1']:.2f} -> {after['pass_at_1']:.2f} ± {after['stderr']:.2f}, length "
        f"{before['mean_length']:.0f} -> {after['mean_length']:.0f} tokens, {len(guards.watch.alarms)} alarms",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
