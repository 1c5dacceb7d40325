"""Prompts, several replies to each, an order of them by a labeler, and the pairs that a reward model learns from.

Replies are written down as they are drawn, and a labeler keeps what it was told: a run that was cut off goes on.
"""

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from statistics import fmean

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.checkpoint_folder import set_aside
from crawl2chat.drift import changes
from crawl2chat.engine import context_length, generate
from crawl2chat.labeler import Judged, Person, Simulated, errors, gold
from crawl2chat.mixture import Part, read_part
from crawl2chat.problems import TaskRows, read_problems
from crawl2chat.stage import fail, write_text

ROLLOUTS, RUN = "rollouts.jsonl", "run.json"  # replies as they are drawn, and what they depend on
NAIVE = 1000  # updates of the policy, prompts an update and replies a prompt, each scored by a person
SPLITS = ("train", "test")


@dataclass
class PromptRows:
    """Prompts out of conversations: what was said before the assistant's last words."""

    path: str = field(
        metadata={"help": "a folder or file of {messages}, or owner/name:configuration on the hub", "reads": True}
    )
    train: int = field(metadata={"help": "prompts whose pairs are trained on", "ge": 1})
    test: int = field(metadata={"help": "prompts held out", "ge": 1})
    split: str | None = field(default=None, metadata={"help": "of a set on the hub; null: train"})


def read_prompts(problems: Sequence[TaskRows], conversations: Sequence[PromptRows], seed: int) -> list[dict]:
    """{"prompt": messages, "split": "train" or "test", "task": a task or ""} rows, each prompt once: those of the
    tasks' own splits, and of every set of conversations so many for either. One clear line where there are too few.
    """
    rows, seen = [], set()
    for split in SPLITS if problems else ():
        rows += [{"prompt": row["prompt"], "split": split, "task": row["task"]}
                 for row in read_problems(problems, split, seed)]  # fmt: skip
    seen = {json.dumps(row["prompt"]) for row in rows}
    for entry in conversations:
        wanted, found = entry.train + entry.test, []
        # of a stream twice as many are read, for some prompts come twice
        for row in read_part(Part(entry.path, split=entry.split, rows=2 * wanted)):
            last = max(i for i, turn in enumerate(row["messages"]) if turn["role"] == "assistant")
            prompt = [{key: turn[key] for key in ("role", "content")} for turn in row["messages"][:last]]
            if prompt and prompt[-1]["role"] == "user" and json.dumps(prompt) not in seen:
                seen.add(json.dumps(prompt))
                found.append(prompt)
        if len(found) < wanted:
            fail(f"{entry.path}: {wanted:,} different prompts are asked for and it has {len(found):,}; ask for fewer")
        chosen = random.Random(f"prompts {seed}").sample(found, wanted)
        rows += [{"prompt": prompt, "split": "test" if i < entry.test else "train", "task": ""}
                 for i, prompt in enumerate(chosen)]  # fmt: skip
    if not rows:
        fail("preferences: no prompt at all; give the recipe `problems` or `conversations`")
    return rows


def fitting(
    rows: list[dict], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> list[dict]:
    """The rows whose prompt and reply fit the model's context; says how many do not. None at all is one clear line."""
    ids = tokenizer.apply_chat_template([row["prompt"] for row in rows], add_generation_prompt=True)["input_ids"]
    context = context_length(model)
    fits = [row for row, prompt in zip(rows, ids, strict=True) if len(prompt) + max_new_tokens <= context]
    if missing := {*SPLITS} - {row["split"] for row in fits}:
        fail(
            f"preferences: no {sorted(missing)[0]} prompt fits: the shortest has {min(map(len, ids))} tokens, a reply "
            f"may take {max_new_tokens}, and the model has {context} positions; lower max_new_tokens"
        )
    if len(fits) < len(rows):
        print(f"preferences: {len(rows) - len(fits):,} of {len(rows):,} prompts dropped: they and a reply of "
              f"{max_new_tokens} tokens do not fit {context} positions")  # fmt: skip
    return fits


# -- replies


def begin(output: Path, facts: dict) -> None:
    """Keep what an earlier start drew if it depends on the same `facts`, else move it out of the way and say why."""
    facts = json.loads(json.dumps(facts, default=str))
    old = [path for path in (output / ROLLOUTS, output / "rankings.jsonl", output / "people") if path.exists()]
    before = json.loads((output / RUN).read_text(encoding="utf-8")) if (output / RUN).exists() else {}
    if old and (lines := changes(before, facts)):
        print(f"preferences: replies are drawn anew ({'; '.join(lines[:6])}); {set_aside(output, old)}")
    write_text(output / RUN, json.dumps(facts, indent=1))


def read_whole(path: Path) -> list[dict]:
    """The rows of a file that grows by lines; a last line that was cut off is removed from it."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        write_text(path, b"".join(line + b"\n" for line in lines[:-1]).decode("utf-8"))
    try:
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        fail(f"{path}: not JSON ({error}); delete it, and its replies are drawn again")


def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    samples: int,
    path: Path,
    batch_size: int,
    **generation,
) -> list[dict]:
    """`rows` with "drawn": `samples` replies, and "ended": whether each closed its turn itself. Each is appended to
    `path` when it is there; what stands there is not drawn again. `generation` is the engine's: max_new_tokens,
    temperature, top_k, top_p, seed. What a prompt gets does not depend on what is drawn beside it.
    """
    done = read_whole(path)[: len(rows)]
    if done:
        print(f"preferences: {len(done)} of {len(rows)} prompts have their replies in {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    at_once = max(1, batch_size // samples)
    with open(path, "a", encoding="utf-8") as file, tqdm(total=len(rows), initial=len(done), unit="prompt") as bar:
        for start in range(len(done), len(rows), at_once):
            part = rows[start : start + at_once]
            asked = [row["prompt"] for row in part for _ in range(samples)]
            replies = generate(model, tokenizer, asked, first=start * samples, batch_size=batch_size, **generation)
            for i, row in enumerate(part):
                own = replies[i * samples : (i + 1) * samples]
                done.append({**row, "drawn": [reply.text for reply in own], "ended": [reply.ended for reply in own]})
                file.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(part))
    return done


def different(rows: Sequence[dict]) -> tuple[list[dict], int]:
    """(rows with two replies or more in "replies", each once; how many identical replies were dropped of all)."""
    rows = [{**row, "replies": list(dict.fromkeys(row["drawn"]))} for row in rows]
    identical = sum(len(row["drawn"]) - len(row["replies"]) for row in rows)
    return [row for row in rows if len(row["replies"]) > 1], identical


# -- orders and pairs


def rank(rows: Sequence[dict], labeler: Simulated | Judged | Person) -> list[dict]:
    """{"prompt", "replies", "order", "labeler", "split", "task"} of the rows that the labeler put in order; "order"
    holds the numbers of the replies, the best first. One clear line where it ordered none, or none of a split."""
    orders = labeler.orders(tqdm(rows, desc=labeler.name, unit="prompt", delay=3))
    keys = ("prompt", "replies", "split", "task")
    ranked = [
        {**{key: row[key] for key in keys}, "order": order, "labeler": labeler.name}
        for row, order in zip(rows, orders, strict=True)
        if order is not None
    ]
    if len(ranked) < len(rows):
        print(f"preferences: {len(rows) - len(ranked)} of {len(rows)} prompts got no order and are left out")
    if missing := {*SPLITS} - {row["split"] for row in ranked}:
        fail(
            f"preferences: {labeler.name} put {len(ranked)} of {len(rows)} prompts' replies in order, and none of the "
            f"{sorted(missing)[0]} split; every order must name each reply once: look at the labeler's answers"
        )
    return ranked


def pairs(ranking: dict, best_against_worst: bool = False) -> Iterator[dict]:
    """{"prompt", "chosen", "rejected": messages, "rank_distance"} of every two replies, or of the best and the worst;
    `rank_distance` is how many places lie between them, 1 for neighbours."""
    order = ranking["order"]
    places = [(0, len(order) - 1)] if best_against_worst else combinations(range(len(order)), 2)
    for better, worse in places:
        sides = {"chosen": order[better], "rejected": order[worse]}
        turns = {
            side: [{"role": "assistant", "content": ranking["replies"][number]}] for side, number in sides.items()
        }
        yield {"prompt": ranking["prompt"], **turns, "rank_distance": worse - better}


def against_gold(rankings: Sequence[dict]) -> dict[str, float]:
    """How far the orders agree with the gold reward, of the prompts that it can judge; nothing where there is none.

    agreement (mean Kendall's tau), flipped and flipped_neighbours (shares of all pairs, and of those that the labeler
    put next to each other, that the gold reward has the other way round; equal marks count half), tied (share of pairs
    of equal marks), gold_mean and gold_best (of all replies, and of the best of each prompt's).
    """
    found = [row for row in rankings if row["task"] == "verse"]
    if not found:
        return {}
    marks = [[gold(row["prompt"], reply) for reply in row["replies"]] for row in found]
    wrong = [errors(own, row["order"]) for own, row in zip(marks, found, strict=True)]
    every, neighbours = (list(chain.from_iterable(part)) for part in zip(*wrong, strict=True))
    return {
        "agreement": fmean(1 - 2 * fmean(pairs) for pairs, _ in wrong),
        "flipped": fmean(every),
        "flipped_neighbours": fmean(neighbours),
        "tied": fmean(value == 0.5 for value in every),
        "gold_mean": fmean(chain.from_iterable(marks)),
        "gold_best": fmean(map(max, marks)),
    }


def the_sum(prompts: int, replies: int) -> str:
    """What scoring every reply by hand would cost, and what was asked of the labeler here."""
    return (
        f"{NAIVE:,} updates x {NAIVE:,} prompts x {NAIVE:,} replies, each scored by a person: {NAIVE**3:,} scores. "
        f"Here {prompts:,} prompts with {replies / prompts:.3g} replies each were put in order: {prompts:,} orders of "
        f"{replies:,} replies, and a reward model learns to give the other scores."
    )
