"""PPO's options, and what is refused before the first step: one clear line, with the numbers that do not fit."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from crawl2chat.checkpoints import ResumeKeys
from crawl2chat.engine import context_length
from crawl2chat.episodes import as_messages
from crawl2chat.model import check_fit
from crawl2chat.reward_model import check_same, check_tokenizer
from crawl2chat.stage import fail


@dataclass
class PPOConfig(ResumeKeys, TrainingArguments):
    """TrainingArguments with PPO's options, under TRL's names, and how a run goes on."""

    learning_rate: float = field(default=3e-6, metadata={"help": "of policy and value model", "ge": 0})
    num_ppo_epochs: int = field(default=4, metadata={"help": "times that a batch is trained on", "ge": 1})
    num_mini_batches: int = field(default=1, metadata={"help": "minibatches of a batch, a step each", "ge": 1})
    total_episodes: int | None = field(
        default=None, metadata={"help": "replies in all, in place of max_steps or num_train_epochs", "ge": 1}
    )
    local_rollout_forward_batch_size: int = field(default=64, metadata={"help": "replies written at once", "ge": 1})
    response_length: int = field(default=53, metadata={"help": "tokens a reply may have", "ge": 1})
    temperature: float = field(default=0.7, metadata={"help": "of the rollouts and the losses", "gt": 0})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "taken from the score of a reply that does not end itself", "ge": 0}
    )
    reward_weights: list[float] | None = field(default=None, metadata={"help": "one a reward; default: 1 each"})
    reward_aggregation: Literal["sum", "min"] = field(
        default="sum", metadata={"help": "of several weighted rewards; min: what the least convinced says"}
    )
    advantage_estimator: Literal["gae", "rloo", "grpo"] = field(
        default="gae", metadata={"help": "against a value model (gae), or the other replies to the prompt"}
    )
    num_generations: int = field(default=1, metadata={"help": "replies to a prompt in a batch", "ge": 1})
    whiten_rewards: bool = field(default=False, metadata={"help": "scale the tokens' rewards to a variance of 1"})
    whiten_advantages: bool = field(default=True, metadata={"help": "scale advantages to mean 0 and variance 1"})
    kl_coef: float = field(default=0.05, metadata={"help": "reward that a nat away from the reference costs", "ge": 0})
    kl_estimator: Literal["k1", "k3"] = field(default="k1", metadata={"help": "k1: log p / q; k3: never negative"})
    kl_target: float | None = field(
        default=None, metadata={"help": "nats a reply that kl_coef is adapted to hold; default: it is fixed", "gt": 0}
    )
    kl_gain: float = field(default=0.1, metadata={"help": "how fast it is adapted", "gt": 0, "le": 1})
    cliprange: float = field(default=0.2, metadata={"help": "of the probability ratio", "gt": 0})
    cliprange_value: float = field(default=0.2, metadata={"help": "of the value", "gt": 0})
    vf_coef: float = field(default=0.1, metadata={"help": "weight of the value loss", "ge": 0})
    gamma: float = field(default=1.0, metadata={"help": "discount of a token's later reward", "ge": 0, "le": 1})
    lam: float = field(default=0.95, metadata={"help": "lambda of the advantages", "ge": 0, "le": 1})
    log_completions: bool = field(default=False, metadata={"help": "write a table of the last batch with each log"})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "walk the graph at every step; no step leaves a parameter out"}
    )


class Leash(TrainerCallback, ExportableState):
    """The KL coefficient as it stands; saved with the checkpoints and found again by a run that goes on, unless its
    recipe begins with another one."""

    def __init__(self, kl_coef: float):
        self.began_with = self.kl_coef = kl_coef

    def state(self) -> dict:
        return {"args": {"kl_coef": self.began_with}, "attributes": {"kl_coef": self.kl_coef}}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get("Leash", self.state())
        if saved["args"]["kl_coef"] == self.began_with:
            self.kl_coef = saved["attributes"]["kl_coef"]


def check_arguments(args: PPOConfig, rewards: Sequence[str], prompts: int) -> list[float]:
    """The rewards' weights. Refuses what could not be gone on from exactly, and sets `max_steps` to whole batches, of
    as many episodes as `total_episodes` or `num_train_epochs` times the prompts ask for, or a few more."""
    weights = args.reward_weights or [1.0] * len(rewards)
    if not rewards or len(weights) != len(rewards):
        fail(f"ppo: {len(weights)} reward_weights for {len(rewards)} rewards ({', '.join(rewards) or 'none'})")
    if not all(map(math.isfinite, weights)):
        fail(f"ppo: reward_weights {weights}: must be finite numbers")
    if args.n_gpu > 1:
        fail(f"ppo: {args.n_gpu} GPUs in one process; start one process each: accelerate launch")
    if not prompts:
        fail("ppo: there is no prompt to train on")
    a_batch = args.num_ppo_epochs * args.num_mini_batches
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.num_mini_batches
    if args.advantage_estimator != "gae" and args.num_generations < 2:
        fail(f"ppo: {args.advantage_estimator} compares replies to one prompt: num_generations must be 2 or more")
    if rows % args.num_generations:
        fail(f"ppo: a rank's batch of {rows} replies must hold whole groups of num_generations {args.num_generations}")
    if args.total_episodes and args.max_steps > 0:
        fail(f"ppo: total_episodes {args.total_episodes} and max_steps {args.max_steps} say the same; give one")
    if args.max_steps > 0 and args.max_steps % a_batch:
        fail(f"ppo: max_steps {args.max_steps} must be a multiple of a batch's {a_batch} steps (num_ppo_epochs "
             f"{args.num_ppo_epochs} x num_mini_batches {args.num_mini_batches})")  # fmt: skip
    if args.max_steps <= 0:
        episodes = args.total_episodes or math.ceil(args.num_train_epochs * prompts)
        args.max_steps = math.ceil(episodes / (rows * args.world_size)) * a_batch
    rhythms = {"save_steps": "steps", "eval_steps": "best"}
    for key, strategy in rhythms.items():
        if args.save_strategy == strategy and a_batch > 1 and getattr(args, key) % a_batch:
            fail(f"ppo: a batch of rollouts is trained on for {a_batch} steps: {key} {getattr(args, key)} must be a "
                 "multiple of it, for a checkpoint holds no rollouts")  # fmt: skip
    if getattr(args, "enable_jit_checkpoint", False) and a_batch > 1:
        fail(
            "ppo: enable_jit_checkpoint saves inside a batch of rollouts, which no run could go on from; leave it out"
        )
    return weights


def check_models(
    policy: PreTrainedModel,
    judges: Sequence[PreTrainedModel],
    value_model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    judges_tokenizers: Sequence[PreTrainedTokenizerBase],
) -> None:
    """Reward and value models have one label and the policy's tokens."""
    check_fit(policy, tokenizer, "model")
    if not tokenizer.chat_template or tokenizer.pad_token_id is None:
        fail("ppo: the tokenizer needs a chat template and a padding token; begin with a model that sft.py has made")
    if judges_tokenizers and len(judges_tokenizers) != len(judges):
        fail(f"ppo: {len(judges_tokenizers)} reward_processing_classes for {len(judges)} reward models")
    models = [(one, one.config._name_or_path or "reward_model") for one in judges]
    for (_, name), other in zip(models, judges_tokenizers, strict=False):
        check_same(other, tokenizer, name)
    for one, name in [*models, *([(value_model, "value_model")] if value_model is not None else [])]:
        if one.config.num_labels != 1:
            fail(f"ppo: {name}: has {one.config.num_labels} labels; a reward or value model has 1")
        check_fit(one, tokenizer, name)
    for one, name in models:
        check_tokenizer(tokenizer, name)
        if one.config.get_text_config().pad_token_id is None:
            one.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def check_apart(models: dict[str, object]) -> None:
    """No model has two parts: one is trained, another is measured by as it was."""
    names: dict[int, str] = {}
    for name, model in models.items():
        if model is not None and id(model) in names:
            fail(f"ppo: {name} is {names[id(model)]} itself, and would change with it; leave it out, or give a copy")
        names[id(model)] = name


def asks(row: object) -> bool:
    """Whether a row's prompt can be replied to."""
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, list):
        return isinstance(prompt, str) and bool(prompt.strip())
    whole = all(isinstance(turn, dict) and (turn.get("content") or turn.get("tool_calls")) for turn in prompt)
    return bool(prompt) and whole and prompt[-1].get("role") in ("user", "tool")


def check_prompts(
    sets: dict[str, Iterable[dict]],
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    response_length: int,
) -> None:
    """Every prompt and a whole reply fit into every model's context."""
    context = min(map(context_length, models))
    for name, rows in sets.items():
        for number, row in enumerate(rows):
            if not asks(row):
                fail(f"ppo: {name}: row {number} asks for no reply: `prompt` must be a text, or messages of which the "
                     f"last is a user's or a tool's; got {str(row)[:80]!r}")  # fmt: skip
        prompts = [as_messages(row["prompt"]) for row in rows]
        found = tokenizer.apply_chat_template(prompts, add_generation_prompt=True)["input_ids"] if prompts else []
        longest = max(range(len(found)), key=lambda i: len(found[i]), default=None)
        if longest is not None and len(found[longest]) + response_length > context:
            fail(f"ppo: {name}: prompt {longest} has {len(found[longest])} tokens; with response_length "
                 f"{response_length} that is more than the models' context of {context}; leave it out, or shorten "
                 "one")  # fmt: skip
