"""Replies and what they earned: as people read them, and as the tensors that PPO trains on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

import torch
from pyarrow import Table
from pyarrow.parquet import write_table
from transformers import PreTrainedModel

from crawl2chat.engine import Reply
from crawl2chat.guards import text_shares
from crawl2chat.stage import fail


@dataclass
class Episode:
    """A reply and what it earned."""

    prompt: list[dict]
    messages: list[dict]  # assistant and tool turns
    text: str  # of the last assistant turn
    tokens: int  # that the policy wrote
    ended: bool
    rewards: dict[str, float | None]  # by name; None: the grader itself failed
    score: float | None  # the weighted rewards less the missing-end penalty
    kl: float = 0.0  # nats away from the reference


@dataclass
class Rollouts:
    """A rank's replies as tensors: ids (rows, length), actions (rows, actions); see advantages.py."""

    episodes: list[Episode]
    ids: torch.Tensor
    lengths: torch.Tensor  # (rows,)
    wanted: torch.Tensor  # (rows, length): the policy wrote it, and it is trained on
    mask: torch.Tensor  # (rows, actions)
    logps: torch.Tensor
    ref_logps: torch.Tensor
    values: torch.Tensor | None  # None: there is no value model
    entropies: torch.Tensor
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    updates: list[torch.Tensor] = field(default_factory=list)  # the rows of every step's minibatch
    counts: torch.Tensor | None = None  # (steps,): actions in each, over all ranks


def as_messages(prompt: list[dict] | str) -> list[dict]:
    """A prompt as a conversation: plain text is what a user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def named(judges: Sequence[PreTrainedModel | Callable]) -> dict[str, PreTrainedModel | Callable]:
    """Reward models and functions by name, in order: a function's own, and the last part of a model's path; a second
    one of a name is name-2."""
    found: dict[str, PreTrainedModel | Callable] = {}
    for judge in judges:
        path = getattr(getattr(judge, "config", None), "_name_or_path", "").rstrip("/")
        name = path.rsplit("/", 1)[-1] or getattr(judge, "__name__", "reward_model")
        same = sum(other == name or other.rpartition("-")[0] == name for other in found)
        found[f"{name}-{same + 1}" if same else name] = judge
    return found


def encode(
    replies: Sequence[Reply], pad: int, trained: Sequence[bool], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids (rows, length) padded on the right, lengths (rows,), and (rows, length) True where the model wrote the id;
    False in the whole row of a reply that is not trained on."""
    rows = [reply.prompt_ids + reply.completion_ids for reply in replies]
    width = max(map(len, rows))
    wrote = [[0] * len(reply.prompt_ids) + reply.completion_mask for reply in replies]
    wrote = [row if used else [0] * len(row) for row, used in zip(wrote, trained, strict=True)]
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    wanted = torch.tensor([row + [0] * (width - len(row)) for row in wrote], dtype=torch.bool, device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device), wanted


def score_replies(
    rows: Sequence[dict],
    replies: Sequence[Reply],
    judges: dict[str, PreTrainedModel | Callable],
    ask: Callable[[PreTrainedModel, Sequence[Reply]], list[float]],
) -> dict[str, list[float | None]]:
    """A value a reply from every reward, by name; `ask` is how a reward model is asked. One clear line for a value
    that is not finite."""
    keys = dict.fromkeys(key for row in rows for key in row if key != "prompt")
    columns = {key: [row.get(key) for row in rows] for key in keys}  # tasks may have columns of their own
    columns |= {"prompts": [as_messages(row["prompt"]) for row in rows]}
    columns |= {"completions": [reply.messages for reply in replies]}
    columns |= {"completion_ids": [reply.completion_ids for reply in replies]}
    found = {}
    for name, judge in judges.items():
        values = ask(judge, replies) if isinstance(judge, PreTrainedModel) else judge(**columns)
        if len(values) != len(replies):
            fail(f"ppo: reward {name} gave {len(values)} values for {len(replies)} replies; it must give one each")
        found[name] = [None if value is None else float(value) for value in values]
        if bad := [value for value in found[name] if value is not None and not math.isfinite(value)]:
            fail(f"ppo: reward {name} is {bad[0]} for {len(bad)} of {len(replies)} replies: stopped before the update")
    return found


def to_episodes(
    rows: Sequence[dict],
    replies: Sequence[Reply],
    judged: dict[str, list[float | None]],
    weights: dict[str, float],
    penalty: float,
    aggregate: Callable[[list[float]], float] = sum,
) -> list[Episode]:
    """The replies with what they earned: `aggregate` of the rewards named in `weights`, times their weights, less
    `penalty` for one that does not end itself. A reply that one of them could not grade has no score at all."""
    episodes = []
    for i, (row, reply) in enumerate(zip(rows, replies, strict=True)):
        rewards = {name: values[i] for name, values in judged.items()}
        score = None
        if all(rewards[name] is not None for name in weights):
            score = aggregate([weight * rewards[name] for name, weight in weights.items()])
            score -= penalty * (not reply.ended)
        tokens = sum(reply.completion_mask)
        episodes.append(
            Episode(as_messages(row["prompt"]), reply.messages, reply.text, tokens, reply.ended, rewards, score)
        )
    return episodes


def batch_numbers(batch: Rollouts, kl: torch.Tensor, kl_coef: float, ranks: int) -> dict[str, torch.Tensor]:
    """What is logged of a batch, by TRL's names: tensors of the values whose means they are. `kl` is (rows, actions).

    KL, entropy and rewards under objective/ are sums over a reply's tokens; kl and entropy alone are a token's.
    """
    episodes, device = batch.episodes, kl.device
    graded = torch.tensor([episode.score is not None for episode in episodes], device=device)
    scores = torch.tensor([episode.score or 0.0 for episode in episodes], device=device)[graded]
    ended = torch.tensor([episode.ended for episode in episodes], device=device)
    away = kl.sum(1)[graded]
    numbers = {
        "objective/kl": away,
        "objective/entropy": -batch.logps.sum(1)[graded],
        "objective/non_score_reward": -kl_coef * away,
        "objective/scores": scores,
        "objective/rlhf_reward": scores - kl_coef * away,
        "objective/kl_coef": torch.full((1,), kl_coef, device=device),
        "val/num_eos_tokens": ended.sum()[None] * ranks,  # in a batch
        "reward": scores,
        "kl": kl[batch.mask],
        "entropy": batch.entropies[batch.mask],
        "ungraded": ~graded,
        "completions/mean_length": torch.tensor([float(episode.tokens) for episode in episodes], device=device),
        "completions/clipped_ratio": ~ended,
    }
    for name, share in text_shares([episode.messages for episode in episodes]).items():
        numbers[name] = torch.full((len(episodes),), share, device=device)
    for name in episodes[0].rewards:
        values = [episode.rewards[name] for episode in episodes]
        numbers[f"rewards/{name}"] = torch.tensor([value for value in values if value is not None], device=device)
    return numbers


def table(batch: Rollouts) -> list[dict]:
    """The rows of TRL's table of completions: {"prompt", "completion", every reward (NaN: no verdict), "advantage"},
    the mean of its actions'."""
    means = (batch.advantages.sum(1) / batch.mask.sum(1).clamp(min=1)).tolist()
    rows = []
    for episode, mean in zip(batch.episodes, means, strict=True):
        rewards = {name: math.nan if value is None else value for name, value in episode.rewards.items()}
        rows.append({"prompt": episode.prompt, "completion": episode.messages, **rewards, "advantage": mean})
    return rows


def write_completions(rows: Sequence[dict], output: Path, step: int, to_wandb: bool) -> None:
    """`table`'s rows as a parquet file of this step below `output`/completions, and as W&B's table."""
    rows, folder = [{"step": step, **row} for row in rows], output / "completions"
    folder.mkdir(parents=True, exist_ok=True)
    write_table(Table.from_pylist(rows), folder / f"completions_{step:05d}.parquet")
    if to_wandb:
        import wandb

        cells = [[value if isinstance(value, int | float) else str(value) for value in row.values()] for row in rows]
        wandb.log({"completions": wandb.Table(columns=list(rows[0]), data=cells)})


def summary(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over episodes: reward (the score), kl (nats a reply), length (tokens), ended, every rewards/<name> and
    their standard errors, stderr/reward and stderr/<name>; and how many have no score, `ungraded`. Stops with one line
    where none has one."""
    scores = [episode.score for episode in episodes if episode.score is not None]
    if not scores:
        fail(f"ppo: none of {len(episodes)} replies could be graded; look at the graders' own messages above")
    numbers = {
        "reward": fmean(scores),
        "stderr/reward": stderr(scores),
        "kl": fmean(episode.kl for episode in episodes if episode.score is not None),  # the others have none
        "length": fmean(episode.tokens for episode in episodes),
        "ended": fmean(episode.ended for episode in episodes),
        "ungraded": len(episodes) - len(scores),
    }
    for name in episodes[0].rewards:
        values = [value for episode in episodes if (value := episode.rewards[name]) is not None]
        numbers |= {f"rewards/{name}": fmean(values), f"stderr/{name}": stderr(values)} if values else {}
    return numbers


def stderr(values: Sequence[float]) -> float:
    """The standard error of a mean; 0 of a single value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
