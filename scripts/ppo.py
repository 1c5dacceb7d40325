"""Proximal policy optimization of a chat model against a reward model, on a leash; full weights or LoRA.

Reads: a chat model, one or more reward models, prompts of the tasks
Writes: model (or adapter), value_model/, curve.json, held_out.jsonl, completions.jsonl, log_history.json, metrics.json

accelerate launch scripts/ppo.py recipes/ppo.yaml
accelerate launch --config_file accelerate_configs/cpu.yaml scripts/ppo.py recipes/laptop/ppo.yaml
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import set_seed
from trl import ModelConfig, get_peft_config

from crawl2chat.drift import digest, digest_weights
from crawl2chat.grpo import completions
from crawl2chat.guards import Guards, Thresholds
from crawl2chat.launch import check_launch
from crawl2chat.model import check_weights, fast_on_cpu, load_model, quantization
from crawl2chat.overoptimization import onlookers
from crawl2chat.ppo import PPOConfig, PPOTrainer
from crawl2chat.practice import rows_as_lines
from crawl2chat.preferences import PromptRows, fitting, read_prompts
from crawl2chat.problems import TaskRows, read_problems
from crawl2chat.protocol import load_tokenizer
from crawl2chat.proxy_gold import curve, gold, headline, looks, measured
from crawl2chat.recipe import parse_recipe
from crawl2chat.reward_model import load_reward_model
from crawl2chat.rewards import Reward, load_rewards
from crawl2chat.stage import fail, finish, write_text
from crawl2chat.tools import open_tools


@dataclass
class PolicyConfig:
    """What is asked, what is rewarded, and when to stop."""

    problems: list[TaskRows] = field(default_factory=list, metadata={"help": "prompts of tasks; test: held out"})
    conversations: list[PromptRows] = field(default_factory=list, metadata={"help": "prompts out of conversations"})
    system: str | None = field(default=None, metadata={"help": "a system message before every prompt"})
    reward_models: list[str] = field(default_factory=list, metadata={"help": "folders of reward.py", "reads": True})
    rewards: list[Reward] = field(default_factory=list, metadata={"help": "functions of crawl2chat.rewards, weighted"})
    onlookers: list[str] = field(default_factory=list, metadata={"help": "reward models that look on", "reads": True})
    tools: list[str] = field(default_factory=list, metadata={"help": "what replies may call: search, python"})
    search_index: str | None = field(default=None, metadata={"help": "the index search looks into", "reads": True})
    samples: int = field(default=4, metadata={"help": "replies to each held-out prompt, before and after", "ge": 1})
    along_the_way: int = field(default=64, metadata={"help": "of the held-out prompts, asked every eval_steps"})
    guards: Thresholds = field(default_factory=Thresholds, metadata={"help": "when an alarm is raised"})
    stop_on: list[str] = field(default_factory=list, metadata={"help": "alarms that end the run"})


RECIPE = (PolicyConfig, PPOConfig, ModelConfig)


def main(config: PolicyConfig, training_args: PPOConfig, model_args: ModelConfig) -> None:
    check_launch(training_args)
    set_seed(training_args.seed)
    fast_on_cpu(training_args)

    # dataset
    seed, rows = training_args.seed, {"train": [], "test": []}
    for split in rows if config.problems else ():
        rows[split] += read_problems(config.problems, split, seed, config.system)
    talks = read_prompts([], config.conversations, seed) if config.conversations else []
    if not talks and not (rows["train"] and rows["test"]):
        fail("ppo: no prompts; give the recipe `problems` or `conversations`, with train and test")
    try:
        tools = open_tools(config.tools, config.search_index)
    except (ValueError, OSError, RuntimeError) as error:
        fail(f"ppo: {error}")

    # tokenizer, models, rewards: reward models first, then functions
    tokenizer = load_tokenizer(model_args.model_name_or_path)
    attention = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    model = load_model(
        model_args.model_name_or_path, revision=model_args.model_revision, dtype=torch.float32,
        **attention, **quantization(model_args, training_args),
    )  # fmt: skip
    for row in fitting(talks, model, tokenizer, training_args.response_length) if talks else ():
        rows[row["split"]].append({"prompt": row["prompt"], "task": "", "answer": ""})
    prompts, held_out = rows["train"], rows["test"]
    reward_funcs = [load_reward_model(path, tokenizer, **attention)[0] for path in config.reward_models]
    weights = training_args.reward_weights or [1.0] * len(reward_funcs)
    if config.rewards:
        functions, own = load_rewards(config.rewards, tokenizer)
        reward_funcs, weights = reward_funcs + functions, weights + own
    training_args.reward_weights = weights

    # trainer: the gold reward and the onlookers look on, and are no part of what is learned
    guards = Guards(config.guards, config.stop_on)
    trainer = PPOTrainer(
        model=model,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=prompts,
        eval_dataset=held_out[: config.along_the_way],
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        eval_funcs=[gold, *onlookers(config.onlookers, tokenizer, training_args.device)],
        tools=tools,
        fingerprint={
            "prompts": digest(json.dumps(prompts)),
            "base": [digest_weights(one) for one in (model, *reward_funcs) if isinstance(one, torch.nn.Module)],
        },
    )
    trainer.callback_handler.callbacks.insert(0, guards)  # before the trackers, which then see its alarms

    # before, train, after: the same prompts and random numbers
    asked = [row for row in held_out for _ in range(config.samples)]
    before = trainer.episodes(asked, training_args.seed + 1)
    trainer.run()
    after = trainer.episodes(asked, training_args.seed + 1)

    # save
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    output, log = Path(training_args.output_dir), trainer.state.log_history
    check_weights(output)
    write_text(
        output / "curve.json", json.dumps(curve(log, trainer.steps_a_batch, trainer.episodes_a_batch), indent=1)
    )
    write_text(output / "log_history.json", json.dumps(log))
    write_text(output / "completions.jsonl", rows_as_lines(completions(output)))
    write_text(output / "held_out.jsonl", rows_as_lines(looks(before, after, config.samples)))
    numbers = measured(before, after, config.samples)
    episodes = trainer.state.global_step // trainer.steps_a_batch * trainer.episodes_a_batch
    finish(
        output,
        {
            **numbers,
            "prompts": len(prompts),
            "steps": trainer.state.global_step,
            "episodes": episodes,
            "episodes_per_second": episodes / trainer.seconds,
            "training_seconds": trainer.seconds,
            "alarms": len(guards.watch.alarms),
        },
        read=f"{model_args.model_name_or_path}, {len(prompts):,} prompts",
        wrote=str(output),
        headline=f"{headline(numbers)}, {numbers['kl']:.1f} nats away after {episodes:,} episodes",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
