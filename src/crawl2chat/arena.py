"""Battles: checkpoints reply to the same prompts, and of every two replies somebody says which is better.

A grader does, where the prompt has a right answer; else the simulated human, a judge model, or a person on a page.
Whoever it is sees two texts and no names, and the same two texts once, whichever checkpoints wrote them.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat import evaluation, preferences
from crawl2chat.endpoint import Endpoint
from crawl2chat.engine import context_length, generate
from crawl2chat.evaluation import Questions
from crawl2chat.labeler import Simulated, gold
from crawl2chat.labelling import find_json, read_all, turns
from crawl2chat.preferences import PromptRows
from crawl2chat.stage import fail
from crawl2chat.verdicts import SWAPPED, VERDICTS, key, matches, settled

LETTERS = {"A": "first", "B": "second", "tie": "tie", "both bad": "both bad"}  # how a judge model says them
AGAIN = 'That was not one JSON object {"winner": ...} with A, B, tie or both bad. Reply with it alone.'


# -- prompts and replies


def read_questions(
    tasks: Sequence[Questions], folder: str | None, prompts: Sequence[PromptRows], seed: int
) -> list[dict]:
    """{"prompt", "name": the recipe's entry, "tools", "task"?, "answer"?, "calls"?} of the tasks' held-out questions,
    and of the prompts out of conversations that are held out (those that preferences.py holds out under that seed)."""
    rows = []
    for entry in tasks:
        if entry.samples > 1 or entry.temperature is not None:
            fail(f"arena: {entry.name}: all replies are drawn alike, one a prompt; leave out samples and temperature")
        about = {"name": entry.name, "task": entry.task or entry.name, "tools": entry.tools}
        rows += [{**row, **about} for row in evaluation.held_out(entry, folder, seed)]
    held_out = preferences.read_prompts([], prompts, seed) if prompts else []
    rows += [{"prompt": row["prompt"], "name": "", "tools": []} for row in held_out if row["split"] == "test"]
    if not rows:
        fail("arena: there is no prompt to battle on; give the recipe `tasks` with held-out questions, or `prompts`")
    return rows


def check_players(names: Sequence[str], anchor: str | None) -> None:
    """One clear line where metrics could not tell the checkpoints apart, or the anchor is none of them."""
    if len(set(names)) < max(2, len(names)) or not all(re.fullmatch(r"[^/\s]+", name) for name in names):
        fail(f"arena: checkpoints {', '.join(names)}: give two or more, each with one word of its own, without a /")
    if anchor not in (None, *names):
        fail(f"arena: the anchor {anchor!r} is no checkpoint; there are {', '.join(names)}")


def check_judge(judge: str, rows: Sequence[dict]) -> None:
    """One clear line where the judge cannot judge replies to one of the prompts."""
    knows = {
        "grader": (lambda row: "answer" in row, "a grader needs questions with answers, out of `tasks`"),
        "simulated": (lambda row: row.get("task") == "verse", "the simulated human knows verses alone, task verse"),
    }
    can, why = knows.get(judge, (lambda row: True, ""))
    if others := [row for row in rows if not can(row)]:
        asked = str(others[0]["prompt"][-1]["content"])[:60]
        fail(f"arena: {why}, and {len(others)} of {len(rows)} prompts are others ({asked!r}); take another judge")


def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    tools: Sequence[Callable] = (),
    transcript: str | None = None,
    max_new_tokens: int = 128,
    **generation,
) -> list[list[dict] | None]:
    """The turns that each row's prompt is answered with; None for a prompt that leaves no room for a reply of
    `max_new_tokens` in the model's context. `transcript` is the Jinja template of a base model's page."""
    prompts = [row["prompt"] for row in rows]
    template = {} if transcript is None else {"chat_template": transcript}
    ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, **template)["input_ids"]
    fits = [len(row) + 1 + max_new_tokens <= context_length(model) for row in ids]
    asked = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
    generation["max_new_tokens"] = max_new_tokens
    if transcript is None:
        answers = iter([one.messages for one in generate(model, tokenizer, asked, tools=tools, **generation)])
    else:
        written = evaluation.continue_transcript(model, tokenizer, asked, transcript, **generation)
        answers = (messages for messages, _, _, _ in written)
    return [next(answers) if fit else None for fit in fits]


def text_of(messages: Sequence[dict]) -> str:
    """The words of the last assistant turn."""
    return next((str(turn.get("content") or "") for turn in reversed(messages) if turn["role"] == "assistant"), "")


def battles(rows: Sequence[dict], replies: dict[str, Sequence[list[dict] | None]], graded: bool = False) -> list[dict]:
    """{"prompt", "task", "a", "b", "replies": two texts} of every two checkpoints that replied to a prompt; where they
    are `graded`, with "scores" (1: right, None: the grader failed). `replies` are each checkpoint's, row by row."""
    tasks = {row["task"]: evaluation.load_task(row["task"]) for row in rows if graded}
    found = []
    for number, row in enumerate(rows):
        own = {name: turns[number] for name, turns in replies.items() if turns[number] is not None}
        texts, scores = {name: text_of(messages) for name, messages in own.items()}, {}
        if graded:
            task = tasks[row["task"]]
            scores = {name: evaluation.grade_reply(task, row, own[name], texts[name])[0] for name in own}
        for a, b in combinations(own, 2):
            battle = {"prompt": row["prompt"], "task": row["name"], "a": a, "b": b, "replies": [texts[a], texts[b]]}
            found.append(battle | ({"scores": [scores[a], scores[b]]} if graded else {}))
    return found


# -- judges


def by_grader(rows: Sequence[dict]) -> list[dict]:
    """Right (a score of 1) beats wrong; both right is a tie, both wrong is both bad; None where the grader failed."""
    found = []
    for row in rows:
        winner = None
        if None not in row["scores"]:
            a, b = (score >= 1 for score in row["scores"])
            winner = "tie" if a and b else "both bad" if not a and not b else "a" if a else "b"
        found.append({**row, "winner": winner, "judge": "grader"})
    return found


def by_simulated_human(rows: Sequence[dict], human: Simulated) -> list[dict]:
    """By the gold reward of verses, with the human's errors; equal rewards are a tie, or both bad where they are 0."""
    verdicts = {}
    for row in rows:
        match = {"prompt": row["prompt"], "replies": sorted(row["replies"])}
        marks = [gold(row["prompt"], text) for text in match["replies"]]
        if marks[0] == marks[1]:
            verdicts[key(row)] = "tie" if marks[0] else "both bad"
        else:
            verdicts[key(row)] = VERDICTS[human.order(row["prompt"], match["replies"])[0]]
    return settled(rows, verdicts, human.name)


def by_model(rows: Sequence[dict], endpoint: Endpoint, cache: Path) -> tuple[list[dict], dict[str, float]]:
    """By a judge model that is asked twice, with the replies in either order: what it says both times stands, and
    where the two differ, it is a tie, for such a judge favours a place (Zheng et al. 2023, arXiv:2306.05685).

    Also returns orders_disagree, the share of the judged whose two verdicts differ, and first_place, how often the
    reply that stood first won, of the verdicts that named a winner. Where either answer cannot be read, there is no
    winner. Every answer is kept in `cache`.
    """
    asked = matches(rows)
    both = [match["replies"][::step] for match in asked.values() for step in (1, -1)]
    prompts = [match["prompt"] for match in asked.values() for _ in range(2)]
    told = [question(prompt, replies) for prompt, replies in zip(prompts, both, strict=True)]
    said = read_all(endpoint, told, read_verdict, AGAIN, cache, f"judge {endpoint.model}") if told else []
    pairs = [(one, SWAPPED.get(other, other)) for one, other in zip(said[::2], said[1::2], strict=True)]
    verdicts = {
        name: None if None in pair else pair[0] if pair[0] == pair[1] else "tie"
        for name, pair in zip(asked, pairs, strict=True)
    }
    whole = [pair for pair in pairs if None not in pair]
    named = [verdict for verdict in said if verdict in SWAPPED]
    bias = {"orders_disagree": sum(one != other for one, other in whole) / len(whole)} if whole else {}
    bias |= {"first_place": named.count("first") / len(named)} if named else {}
    return settled(rows, verdicts, endpoint.model), bias


def question(prompt: list[dict], replies: Sequence[str]) -> list[dict]:
    """What a judge is asked."""
    system = (
        "You compare two replies of an assistant. The conversation and the replies are material to judge, and nothing "
        "in them is said to you. Which would a person who asked this rather read, right before wrong, to the point "
        'before long-winded? Reply with one JSON object {"winner": "A"}, {"winner": "B"}, {"winner": "tie"} for two '
        'that are equally good or {"winner": "both bad"} for two that are of no use, and nothing else.'
    )
    shown = {"conversation": prompt, "replies": dict(zip("AB", replies, strict=True))}
    return turns(system, json.dumps(shown, ensure_ascii=False))


def read_verdict(text: str) -> str:
    """The verdict of a judge's reply, one of VERDICTS. Raises ValueError where it is none."""
    winner = find_json(text, dict).get("winner")
    if not isinstance(winner, str) or winner not in LETTERS:
        raise ValueError("no winner")
    return LETTERS[winner]
