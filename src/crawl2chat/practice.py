"""Problems tried several times each, and what the tries say: pass@1, pass@k, how long, and whether work is shown."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.engine import generate
from crawl2chat.evaluation import grade_reply, load_task
from crawl2chat.metrics import accuracy, pass_at_k
from crawl2chat.stage import fail


@dataclass
class Rollout:
    """One try at a problem."""

    messages: list[dict]  # assistant and tool turns
    text: str  # of the last assistant turn
    prompt_ids: list[int]
    completion_ids: list[int]
    completion_mask: list[int]  # 1: the model wrote it, 0: a tool's result and its marks
    ended: bool
    score: float | None  # the task's verdict; None: the grader itself failed

    @property
    def tokens(self) -> int:
        """Tokens the model wrote."""
        return sum(self.completion_mask)


def rollouts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[dict],
    samples: int,
    tools: Sequence[Callable] = (),
    **generation,
) -> list[list[Rollout]]:
    """Try every problem ({"prompt", "answer", "task", "calls"?}) `samples` times and grade each try.

    `generation` is the engine's: max_new_tokens, temperature, top_k, top_p, seed, batch_size, progress.
    A prompt is read once for all its tries. A reply that does not end itself is graded as it stands.
    """
    repeated = [problem for problem in problems for _ in range(samples)]
    replies = generate(model, tokenizer, [problem["prompt"] for problem in repeated], tools=tools, **generation)
    tried = []
    for problem, reply in zip(repeated, replies, strict=True):
        score, _ = grade_reply(load_task(problem["task"]), problem, reply.messages, reply.text)
        ids = (reply.prompt_ids, reply.completion_ids, reply.completion_mask)
        tried.append(Rollout(reply.messages, reply.text, *ids, reply.ended, score))
    return [tried[i : i + samples] for i in range(0, len(tried), samples)]


def right(rollout: Rollout) -> bool:
    """Whether the try earned full marks."""
    return rollout.score is not None and rollout.score >= 1


def summary(problems: Sequence[dict], groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """Numbers of a set of problems, each tried equally often.

    pass_at_1 with its standard error over problems (the tries of one problem are no independent evidence), pass_at_k
    (at least one of the tries is right), mean_length in tokens, ended, ungraded, and worked: the share of replies
    that show their work, of tasks that can tell (`shows_work`).
    """
    tries = [rollout for group in groups for rollout in group]
    graded = [[right(rollout) for rollout in group if rollout.score is not None] for group in groups]
    found = accuracy([fmean(marks) if marks else None for marks in graded])
    numbers = {
        "pass_at_1": found["accuracy"],
        "stderr": found["stderr"],
        "pass_at_k": fmean(pass_at_k(len(marks), sum(marks), len(marks)) for marks in graded if marks),
        "mean_length": fmean(rollout.tokens for rollout in tries),
        "ended": fmean(rollout.ended for rollout in tries),
        "ungraded": sum(rollout.score is None for rollout in tries),
    }
    worked = [
        task.shows_work(rollout.text)
        for problem, group in zip(problems, groups, strict=True)
        if hasattr(task := load_task(problem["task"]), "shows_work")
        for rollout in group
    ]
    return numbers | ({"worked": fmean(worked)} if worked else {})


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[dict],
    samples: int,
    temperature: float,
    **generation,
) -> dict[str, float]:
    """`summary` of sampled tries at held-out problems, and `greedy`, the share right at temperature 0."""
    drawn = rollouts(model, tokenizer, problems, samples, temperature=temperature, **generation)
    greedy = rollouts(model, tokenizer, problems, 1, temperature=0.0, **generation)
    return summary(problems, drawn) | {"greedy": summary(problems, greedy)["pass_at_1"]}


@dataclass
class Curriculum:
    """Which problems can teach: those that are solved now and then."""

    tries: int = field(default=4, metadata={"help": "at each problem, before training", "ge": 1})
    at_least: float = field(default=0.01, metadata={"help": "share of tries that must be right", "ge": 0, "le": 1})
    at_most: float = field(default=0.99, metadata={"help": "share of tries that may be right", "ge": 0, "le": 1})


def teachable(problems: Sequence[dict], groups: Sequence[Sequence[Rollout]], curriculum: Curriculum) -> list[dict]:
    """The problems whose share of right tries lies within the curriculum; prints what was left out.
    None at all is one clear line."""
    shares = [fmean(right(rollout) for rollout in group) for group in groups]
    kept = [i for i, share in enumerate(shares) if curriculum.at_least <= share <= curriculum.at_most]
    low, high = (
        sum(test) for test in zip(*((s < curriculum.at_least, s > curriculum.at_most) for s in shares), strict=True)
    )
    print(
        f"curriculum: of {len(problems):,} problems {low:,} are too hard yet and {high:,} too easy; {len(kept):,} left"
    )
    if not kept:
        fail("curriculum: no problem is left to practise; take others, or widen at_least and at_most")
    return [problems[i] for i in kept]


def shown(problem: dict) -> str:
    """A problem as people read it: the last thing that was asked."""
    return problem["prompt"][-1]["content"]


def rows_as_lines(rows: Iterable[dict]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
