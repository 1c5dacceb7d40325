"""Rejection sampling: problems tried several times each, the best right try kept, and rounds of that which can stop
and go on.

The loop is STaR's (Zelikman et al. 2022, arXiv:2203.14465) with several tries a problem, as in RFT (Yuan et al. 2023,
arXiv:2308.01825) and ReST-EM (Singh et al. 2023, arXiv:2312.06585). What is trained on are the ids that a try wrote,
never its text tokenized again. A problem whose tries are all right teaches nothing new and one whose tries are all
wrong nothing at all: both are counted and set aside.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from crawl2chat.checkpoint_folder import FINISHED, set_aside
from crawl2chat.drift import FREE, changes
from crawl2chat.practice import Rollout, right, rollouts, rows_as_lines, shown, summary
from crawl2chat.protocol import turn_end
from crawl2chat.reward_model import open_reward_model as open_reward_model
from crawl2chat.stage import fail, write_text

Rule = Literal["short", "any", "reward_model"]
SHOWN = 5  # problems of a round whose tries are all kept to be looked at
IGNORED = -100  # the label of a token that bears no loss
COUNTED = ("problems", "rollouts", "right", "kept", "all_right", "all_wrong", "unusable", "ungraded")
PRACTICE = "practice.json"  # in a round's folder: what its tries gave; there once it is whole
DONE = "metrics.json"  # in a round's folder, written last: the round is complete
RUN = "run.json"  # beside the rounds: what they depend on


@dataclass
class Practice:
    """What a round's tries gave."""

    rows: list[dict]  # {"input_ids", "labels"}, one a problem that was kept
    counts: dict[str, int]  # problems = kept + all_right + all_wrong + unusable + ungraded; rollouts, right
    shown: list[dict]  # {"prompt", "answer", "rollouts": [{"text", "tokens", "score", "chosen"}]}
    seconds: float = 0.0


def stop(message: str) -> NoReturn:
    """`fail` on the main rank; the others end without a word."""
    if PartialState().is_main_process:
        fail(message)
    sys.exit(1)


# -- tries


def tries(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[dict],
    samples: int,
    seed: str | int,
    **ways,
) -> list[list[Rollout]]:
    """`practice.rollouts`, the problems shared out over the ranks: however many there are, every one returns the same
    tries of all problems, in order."""
    state = PartialState()
    first, last = (len(problems) * (state.process_index + i) // state.num_processes for i in (0, 1))
    own_seed = random.Random(f"tries {seed}").getrandbits(32)
    try:
        mine = rollouts(model, tokenizer, problems[first:last], samples, seed=own_seed, first=first * samples, **ways)
    except ValueError as error:  # a problem that does not fit the model
        fail(f"rejection: {error}")
    return gather_object(mine)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[dict],
    samples: int,
    temperature: float,
    seed: int,
    **ways,
) -> dict[str, float]:
    """`practice.measure` over all ranks: the same random numbers whenever it is called, so that rounds compare."""
    drawn = tries(model, tokenizer, problems, samples, seed, temperature=temperature, **ways)
    greedy = tries(model, tokenizer, problems, 1, seed, temperature=0.0, **ways)
    try:
        numbers = summary(problems, drawn) | {"greedy": summary(problems, greedy)["pass_at_1"], "k": samples}
    except ValueError as error:
        stop(f"rejection: {error}")
    return {**numbers, "unmeasured": numbers.pop("ungraded")}


# -- what is kept


def training_row(rollout: Rollout) -> dict[str, list[int]]:
    """The ids of a try and their labels: loss on what the model wrote, its end token included, and on nothing else."""
    pairs = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    labels = [IGNORED] * len(rollout.prompt_ids) + [token if wrote else IGNORED for token, wrote in pairs]
    return {"input_ids": [*rollout.prompt_ids, *rollout.completion_ids], "labels": labels}


def pick(group: Sequence[Rollout], usable: Sequence[int], rule: Rule, marks: Sequence[float], rng) -> int:
    """The try that is trained on, of those that are `usable` (numbers in `group`, with the reward model's `marks`)."""
    if rule == "short":
        return min(usable, key=lambda i: group[i].tokens)  # of equally short ones the first
    if rule == "reward_model":
        return max(zip(marks, usable, strict=True), key=lambda pair: pair[0])[1]
    return rng.choice(list(usable))


def fits(rollout: Rollout, max_length: int | None) -> bool:
    """Whether a try with its prompt is at most so many tokens long."""
    return max_length is None or len(rollout.prompt_ids) + len(rollout.completion_ids) <= max_length


def select(
    problems: Sequence[dict],
    groups: Sequence[Sequence[Rollout]],
    rule: Rule,
    max_length: int | None = None,
    seed: str | int = 0,
    score: Callable[[list[list[dict]]], list[float]] | None = None,
) -> Practice:
    """One row of every problem that some tries solve and others do not.

    A try is usable if it is right, closed its turn itself and is at most `max_length` tokens long with its prompt; a
    problem whose right tries are none of that counts as `unusable`. Tries without a verdict say nothing; a problem
    with no other is `ungraded`. `score` gives conversations the marks that the rule "reward_model" goes by.
    """
    counts, kept, rng = Counter(problems=len(problems)), [], random.Random(f"pick {seed}")
    for problem, group in zip(problems, groups, strict=True):
        marks = [right(rollout) for rollout in group if rollout.score is not None]
        counts["rollouts"] += len(group)
        counts["right"] += sum(marks)
        usable = [
            i for i, rollout in enumerate(group) if right(rollout) and rollout.ended and fits(rollout, max_length)
        ]
        if not marks:
            counts["ungraded"] += 1
        elif not any(marks):
            counts["all_wrong"] += 1
        elif all(marks):
            counts["all_right"] += 1
        elif not usable:
            counts["unusable"] += 1
        else:
            counts["kept"] += 1
            kept.append((problem, group, usable))
    scores = iter([])
    if score and kept:
        scores = iter(score([p["prompt"] + group[i].messages for p, group, usable in kept for i in usable]))
    found = Practice([], {key: counts[key] for key in COUNTED}, [])
    for problem, group, usable in kept:
        chosen = pick(group, usable, rule, [next(scores) for _ in usable] if score else [], rng)
        found.rows.append(training_row(group[chosen]))
        if len(found.shown) < SHOWN:
            told = [
                {"text": rollout.text, "tokens": rollout.tokens, "score": rollout.score, "chosen": i == chosen}
                for i, rollout in enumerate(group)
            ]
            found.shown.append({"prompt": shown(problem), "answer": problem["answer"], "rollouts": told})
    return found


# -- rounds


def check_chat_model(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Stop with one line unless the tokenizer's end token is the one that closes a turn, as SFT leaves it."""
    try:
        end = turn_end(tokenizer)
    except ValueError as error:
        stop(f"{path}: is no chat model: {' '.join(str(error).split())[:160]}; give a folder that sft.py has finished")
    if tokenizer.eos_token != end:
        stop(
            f"{path}: is no chat model: its texts end in {tokenizer.eos_token}, not in the chat template's {end}; "
            "give a folder that sft.py has finished"
        )


def deal(problems: list[dict], rounds: int, each: int, seed: int) -> list[list[dict]]:
    """The problems of every round, shuffled, each asked once. Stops with one line where there are too few."""
    if len(problems) < rounds * each:
        stop(
            f"problems: {rounds} rounds of {each} need {rounds * each:,} different problems and there are "
            f"{len(problems):,}; raise `train` of an entry, or lower problems_per_round"
        )
    order = random.Random(f"deal {seed}").sample(problems, len(problems))
    return [order[i * each : (i + 1) * each] for i in range(rounds)]


def round_folder(output: Path, number: int) -> Path:
    """Where a round's practice, model and numbers lie; round 0 is the start, before any training."""
    return output / f"round-{number}"


def begin(output: Path, config, training_args: TrainingArguments, fingerprint: dict) -> None:
    """Find out whether the rounds in `output` are this run's, and move those of an earlier one out of the way.

    Rounds go on if their run was cut off. A recipe that changed since is named and refused, unless `allow_drift`;
    more rounds, or others at once in a batch, are no change.
    """
    state, resume = PartialState(), str(training_args.resume_from_checkpoint).lower()
    facts = {
        "recipe": {key: value for key, value in asdict(config).items() if key not in ("rounds", "batch_size")},
        "arguments": {key: value for key, value in training_args.to_dict().items() if key not in FREE},
        "fingerprint": {**fingerprint, "ranks": state.num_processes},
    }
    facts = json.loads(json.dumps(facts, default=str))
    if state.is_main_process:
        found = sorted(path for path in output.glob("round-*") if path.is_dir())
        ended = any((path / FINISHED).exists() for path in found) or not (output / RUN).exists()
        if found and not ended and resume != "false":
            lines = changes(json.loads((output / RUN).read_text(encoding="utf-8")), facts)
            if lines and not training_args.allow_drift:
                fail(
                    f"{output}: its rounds are of another recipe: {'; '.join(lines[:12])}. Put it back; or go on "
                    "anyway with --allow_drift true; or begin anew with --resume_from_checkpoint false"
                )
            done = sum(map(is_done, found))
            print(f"rejection: going on in {output}, {done} of its rounds are measured and done", flush=True)
        elif moved := set_aside(output, found):
            print(f"rejection: {moved}", flush=True)
        write_text(output / RUN, json.dumps(facts, indent=1))
    state.wait_for_everyone()


def check_keys(choose: Rule, reward_model: str | None, training_args: TrainingArguments) -> None:
    """Stop with one line on keys that do not go together, or that rounds cannot follow."""
    if (choose == "reward_model") != (reward_model is not None):
        stop("choose: reward_model, and the key reward_model with that model's path, go together")
    if str(training_args.resume_from_checkpoint).lower() not in ("none", "true", "false"):
        stop("resume_from_checkpoint: rounds go on by themselves; say false to begin anew, or leave the key out")
    if training_args.push_to_hub:
        stop("push_to_hub: every round would be pushed; upload the finished folder in place of it")


def practise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[dict],
    folder: Path,
    rule: Rule,
    max_length: int | None,
    seed: str,
    score: Callable[[list[list[dict]]], list[float]] | None,
    **ways,
) -> Practice:
    """A round's tries and what `select` keeps of them, written to the round's folder; read from there if they are.

    Stops with one line where no try is right.
    """
    practice, began = read_practice(folder), time.time()
    if practice is None:
        practice = select(
            problems, tries(model, tokenizer, problems, seed=seed, **ways), rule, max_length, seed, score
        )
        practice.seconds = time.time() - began
        if PartialState().is_main_process:
            write_text(folder / PRACTICE, json.dumps(asdict(practice)))
    counts = practice.counts
    if not counts["right"]:
        stop(
            f"{folder.name}: none of {counts['rollouts']:,} tries at {counts['problems']:,} problems is right: "
            "nothing to learn from; begin with a model that is right sometimes, or with easier problems. "
            f"What the rounds before made stays in {folder.parent}"
        )
    return practice


def read_practice(folder: Path) -> Practice | None:
    """What the round's tries gave, if they were finished."""
    path = folder / PRACTICE
    return Practice(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def is_done(folder: Path) -> bool:
    """Whether a round is complete: its model is written and measured."""
    return (folder / DONE).exists()


def end_round(
    output: Path, number: int, numbers: dict[str, float], practice: Practice | None, training_seconds: float
) -> None:
    """Write what a round found, its folder's metrics.json last, then rounds.json and rollouts.jsonl of all rounds so
    far, and print the round's line."""
    if not PartialState().is_main_process:
        return
    practice = practice or Practice([], dict.fromkeys(COUNTED, 0), [])
    spent = {"rollout_seconds": practice.seconds, "training_seconds": training_seconds}
    write_text(round_folder(output, number) / DONE, json.dumps({**numbers, **practice.counts, **spent}, indent=1))
    rounds = read_curve(output, number)
    write_text(output / "rounds.json", json.dumps(rounds, indent=1) + "\n")
    looks = [
        {"round": row["round"], **look}
        for row in rounds[1:]
        for look in read_practice(round_folder(output, row["round"])).shown
    ]
    write_text(output / "rollouts.jsonl", rows_as_lines(looks))
    counts, now = practice.counts, rounds[-1]
    tried = (
        f"{counts['rollouts']:,} tries at {counts['problems']:,} problems: {counts['kept']:,} kept, "
        f"{counts['all_right']:,} all right, {counts['all_wrong']:,} all wrong"
        + "".join(f", {counts[key]:,} {key}" for key in ("unusable", "ungraded") if counts[key])
        if number
        else "before any training"
    )
    print(
        f"round {number}: {tried} | held-out pass@1 {now['pass_at_1']:.3f} ± {now['stderr']:.3f}, "
        f"pass@{now['k']} {now['pass_at_k']:.3f}, greedy {now['greedy']:.3f}, {now['mean_length']:.1f} tokens"
        + (f", work shown {now['worked']:.2f}" if "worked" in now else "")
        + (f", {now['unmeasured']} ungraded" if now["unmeasured"] else "")
        + f" | {practice.seconds:.0f} s trying, {training_seconds:.0f} s training",
        flush=True,
    )


def read_curve(output: Path, rounds: int) -> list[dict]:
    """The rows of rounds.json, of the complete rounds up to `rounds`: rollouts, and seconds of practice (tries and
    training; measuring left out), are those since the start; the other counts are the round's own.
    """
    rows, total = [], Counter()
    while len(rows) <= rounds and is_done(folder := round_folder(output, len(rows))):
        row = json.loads((folder / DONE).read_text(encoding="utf-8"))
        total["rollouts"] += row["rollouts"]
        total["seconds"] += row["rollout_seconds"] + row["training_seconds"]
        rows.append({"round": len(rows), **row, **total})
    return rows


def mark_rounds(output: Path) -> None:
    """The run has ended: the same command begins anew from now on."""
    for folder in output.glob("round-*"):
        (folder / FINISHED).touch()
