"""What a reply earns in reinforcement learning, beyond what its task says of right and wrong: plain functions by name.

A recipe says `rewards: [{name: correct}, {name: short, weight: 0.1, knobs: {limit: 64}}]`. TRL's GRPOTrainer calls
each with the completions (lists of messages, or texts) and the columns of the rows, a value a completion; what comes
back is a float a completion, or None where the grader itself failed. Nothing here pays for an empty reply.
"""

import inspect
import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache, partial, update_wrapper

from transformers import PreTrainedTokenizerBase

from crawl2chat.evaluation import grade_reply, load_task
from crawl2chat.protocol import THINK_END, THINK_START
from crawl2chat.stage import fail

Completion = list[dict] | str
# words and numbers, CJK one by one; what runs on without a space is cut, so that "aaaa..." and "1111..." repeat
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]{1,20}|\d{1,6}")
SCRIPTS = {"HIRAGANA": "CJK", "KATAKANA": "CJK"} | {
    name: name
    for name in (
        "LATIN CYRILLIC GREEK CJK HANGUL ARABIC HEBREW DEVANAGARI BENGALI TAMIL TELUGU THAI GEORGIAN ARMENIAN ETHIOPIC"
    ).split()
}


@dataclass
class Reward:
    """A reward, how much it counts, and its own knobs."""

    name: str = field(metadata={"help": "correct, format, short, unrepeated or language"})
    weight: float = field(default=1.0, metadata={"help": "what it is multiplied with before the rewards are added"})
    knobs: dict = field(default_factory=dict, metadata={"help": "arguments of the reward, such as limit"})


def load_rewards(
    entries: Sequence[Reward], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Callable[..., list[float | None]]], list[float]]:
    """The functions and weights for GRPOTrainer's `reward_funcs` and `reward_weights`; each keeps its __name__.

    An unknown name or knob, one named twice, and a value that cannot be are one clear line.
    """
    functions, known = [], {function.__name__: function for function in REWARDS}
    if not entries:
        fail("rewards: none is named; begin with {name: correct}")
    for number, entry in enumerate(entries):
        if entry.name not in known:
            fail(f"rewards: no reward {entry.name!r}; {_nearest(entry.name, known)}")
        if entry.name in {other.name for other in entries[:number]}:
            fail(f"rewards: {entry.name} is named twice; give it one weight")
        if not math.isfinite(entry.weight):
            fail(f"rewards: {entry.name}: weight must be a number, got {entry.weight}")
        function = known[entry.name]
        parameters = inspect.signature(function).parameters.values()
        own = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
        bound = {"tokenizer": tokenizer} if "tokenizer" in own else {}
        for knob, value in entry.knobs.items():
            if knob not in own.keys() - {"tokenizer"}:
                fail(f"rewards: {entry.name} has no knob {knob!r}; {_nearest(knob, own.keys() - {'tokenizer'})}")
            if not isinstance(value, type(own[knob])) or isinstance(value, bool) or value < 1:
                fail(f"rewards: {entry.name}: {knob} must be a whole number of at least 1, got {value!r}")
        functions.append(update_wrapper(partial(function, **bound, **entry.knobs), function))
    return functions, [entry.weight for entry in entries]


def correct(
    completions: list[Completion], task: list[str], answer: list[str], calls: list | None = None, **kwargs
) -> list[float | None]:
    """The task's own grade of the last turn's words, thoughts left out; None where the grader itself failed.

    What a row's `calls` names must have been called. Failures are printed with what the first one raised.
    """
    scores, errors = [], []
    for completion, name, wanted, tools in zip(completions, task, answer, calls or [None] * len(task), strict=True):
        messages = completion if isinstance(completion, list) else []
        try:
            called = json.dumps([message for message in messages if message.get("tool_calls")])
            scores.append(_verdict(name, said(completion), wanted, json.dumps(tools), called))
        except ArithmeticError as error:
            scores.append(None)
            errors.append(str(error))
    if errors:
        print(f"correct: {len(errors)} of {len(scores)} replies could not be graded: {errors[0]}", flush=True)
    return scores


@lru_cache(maxsize=4096)
def _verdict(task: str, text: str, answer: str, calls: str, messages: str) -> float:
    """One grade, kept: a group says the same more than once, and `short` asks again what `correct` asked. A failure
    is raised, as ArithmeticError, and so not kept: the next time the grader may be well again."""
    example = {"answer": answer, "calls": json.loads(calls)}
    score, error = grade_reply(load_task(task), example, json.loads(messages), text)
    if score is None:
        raise ArithmeticError(error)
    return score


def format(
    completions: list[Completion],
    completion_ids: list[list[int]] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **kwargs,
) -> list[float]:
    """1 for a reply that is one thought and then words: a single think block, first of all, closed, with something in
    it and something after it; else 0.

    Read from the ids: of several think blocks the messages keep only the last, and words before one join the answer.
    """
    if tokenizer is not None and completion_ids is not None:
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in completion_ids]
    else:
        texts = [written(completion) for completion in completions]
    scores = []
    for text, completion in zip(texts, completions, strict=True):
        before, opened, rest = text.partition(THINK_START)
        thought, closed, after = rest.partition(THINK_END)
        single = opened and closed and THINK_START not in rest and THINK_END not in after
        wordy = all(any(map(str.isalnum, part)) for part in (thought, after, said(completion)))
        scores.append(float(bool(single and not before.strip() and wordy)))
    return scores


def short(
    completions: list[Completion],
    task: list[str],
    answer: list[str],
    completion_ids: list[list[int]],
    calls: list | None = None,
    *,
    limit: int = 256,
    **kwargs,
) -> list[float | None]:
    """Of a right reply 1 at no tokens, falling in a line to 0 at `limit` tokens, times its grade; of a wrong one 0.

    For right ones alone: paid to all, the quickest way to it is to say nothing. Tools' results count as tokens. Where
    every reply of a group is right, only length sets them apart, and `scale_rewards: group` makes any weight, however
    small, a full push: take none or batch to keep it small.
    """
    grades = correct(completions, task, answer, calls)
    brevity = [max(0.0, 1 - len(ids) / limit) for ids in completion_ids]
    return [None if grade is None else grade * part for grade, part in zip(grades, brevity, strict=True)]


def unrepeated(completions: list[Completion], *, n: int = 4, **kwargs) -> list[float]:
    """1 minus the share of a reply's runs of `n` words or numbers that it had said before; 0 for a
    reply without words. A reply shorter than 2n words is judged by runs of half its length: "the the the" has 1/3."""
    return [_fresh(words(completion), n) for completion in completions]


def _fresh(text: str, n: int) -> float:
    found = [word.lower() for word in WORDS.findall(text)]
    n = min(n, max(len(found) // 2, 1))
    runs = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def language(completions: list[Completion], prompts: list[Completion], **kwargs) -> list[float]:
    """Share of a reply's letters, thoughts included, that are of the script most of its prompt is in (Latin, Cyrillic,
    CJK with kana, ...). 1 for words without letters and for a prompt without any, 0 for a reply without words.

    Scripts, not languages: French in answer to English passes. DeepSeek-R1 counts words of the wanted language.
    """
    scores = []
    for completion, prompt in zip(completions, prompts, strict=True):
        asked = prompt if isinstance(prompt, str) else " ".join(words([m]) for m in prompt if m["role"] == "user")
        wanted, text = _scripts(asked), words(completion)
        used = _scripts(text)
        if not any(map(str.isalnum, text)):
            scores.append(0.0)
        elif not wanted or not used:
            scores.append(1.0)
        else:
            scores.append(used.count(max(set(wanted), key=wanted.count)) / len(used))
    return scores


def _scripts(text: str) -> list[str]:
    return [script for character in text if character.isalpha() and (script := _script(character))]


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    """The script a letter's Unicode name speaks of; empty for letters of none (mathematical ones)."""
    return next((SCRIPTS[word] for word in re.split(r"[ -]", unicodedata.name(character, "")) if word in SCRIPTS), "")


def said(completion: Completion) -> str:
    """What a reply says in its last turn, its thoughts left out: nothing where a thought is not closed."""
    if isinstance(completion, str):
        text = completion
    else:
        last = next((message for message in reversed(completion) if message["role"] == "assistant"), {})
        text = last.get("content") or ""
    _, opened, rest = text.rpartition(THINK_START)
    return text.rpartition(THINK_END)[2] if not opened or THINK_END in rest else ""


def written(completion: Completion) -> str:
    """All that the model wrote, or the user of a prompt: thoughts in their marks, and words; no calls, no results."""
    if isinstance(completion, str):
        return completion
    parts = []
    for message in completion:
        if message["role"] != "tool":
            thinking, content = message.get("thinking") or "", message.get("content") or ""
            parts.append(f"{THINK_START}{thinking}{THINK_END}\n" * bool(thinking) + content)
    return "\n".join(parts)


def words(completion: Completion) -> str:
    """What the model wrote, thoughts and words, without the marks of a thought."""
    return written(completion).replace(THINK_START, "\n").replace(THINK_END, "\n")


def _nearest(name: str, known) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there is {', '.join(sorted(known)) or 'none'}"


REWARDS = (correct, format, short, unrepeated, language)  # what a recipe may name
