"""Conversations written and judged by a model that was given the labelling instructions.

Three passes over one endpoint or two: prompts from seeds (a topic and a kind of prompt, or a fact of the run's own
pages), an ideal answer to each, then marks by the judge. The instructions file decides all of it: its sections go to
the model as they stand, its kinds of prompts, reasons and limits are read from it. Without an endpoint the tasks'
templates are the writer, and this module is not used. Every reply is in the cache, every dropped row in a file.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crawl2chat.cleaning import deduplicate, words
from crawl2chat.endpoint import Answer, Endpoint, ask
from crawl2chat.stage import fail, write_text
from crawl2chat.tasks.facts import in_conversations

PROMPTS, ANSWERS, TASTE = "What a prompt may be", "What an answer must be", "When these pull apart"
FORM, REASONS, EXAMPLES = "Form", "Reasons to drop a conversation", "Worked examples"
LONGEST = 4000  # characters of a prompt that a person might send


@dataclass
class Labelling:
    """What is written by a model, and by which."""

    writer: Endpoint = field(metadata={"help": "writes prompts and answers"})
    judge: Endpoint | None = field(default=None, metadata={"help": "marks them; null: the writer, less severe"})
    rows: int = field(default=1000, metadata={"help": "prompts to write; the judge keeps fewer", "ge": 1})
    topics: list[str] = field(default_factory=list, metadata={"help": "what prompts are about"})
    facts: str | None = field(default=None, metadata={"help": "facts.jsonl, for half the prompts", "reads": True})
    prompts_a_request: int = field(default=5, metadata={"help": "prompts written at once", "ge": 1, "le": 50})
    instructions: str = field(
        default="recipes/labelling_instructions.md", metadata={"help": "what writer and judge are told", "reads": True}
    )
    name: str = field(default="labelled", metadata={"help": "the folder of the rows, and their task"})


@dataclass(frozen=True)
class Instructions:
    """The file: its opening and sections as they stand, and what its lists and its last rule say."""

    sections: dict[str, str]
    kinds: list[str]
    reasons: dict[str, str]
    fatal: frozenset[str]
    worst_kept: int

    def say(self, *names: str) -> str:
        """The opening and the named sections, all where none is named."""
        return "\n\n".join([self.sections[""], *(self.sections[name] for name in names or list(self.sections)[1:])])


def read_instructions(path: str | Path) -> Instructions:
    """Read the file. One clear line where it lacks a section, its kinds, its reasons, or what drops a conversation."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: cannot be read ({error}); name the labelling instructions in the recipe")
    opening, *parts = re.split(r"^## +(.+?)\s*$", text, flags=re.MULTILINE)
    sections = {"": opening.strip()}
    sections |= {name: f"## {name}\n\n{body.strip()}" for name, body in zip(parts[::2], parts[1::2], strict=True)}
    for name in (PROMPTS, ANSWERS, TASTE, FORM, REASONS, EXAMPLES):
        if name not in sections:
            fail(f"{path}: no section '## {name}' (there are {', '.join(list(sections)[1:]) or 'none'}); add it")
    kinds = re.findall(r"^- (.+)$", sections[PROMPTS], re.MULTILINE)
    reasons = dict(re.findall(r"^- `(\w+)`: (.+)$", sections[REASONS], re.MULTILINE))
    rule = " ".join(sections[REASONS].rpartition("\n- ")[2].split("\n\n")[1:])
    fatal = re.findall(r"`(\w+)`", rule.partition("at any mark")[0]) if "at any mark" in rule else []
    limit = re.search(r"a mark of ([1-4]) or less", rule)
    if not kinds or not reasons or not fatal or not limit or set(fatal) - set(reasons):
        fail(
            f"{path}: needs kinds ('- ...') under '{PROMPTS}' and, under '{REASONS}', '- `name`: ...' and then a rule "
            "such as '`false` drops a conversation at any mark; otherwise a mark of 3 or less does.'"
        )
    return Instructions(sections, kinds, reasons, frozenset(fatal), int(limit[1]) + 1)


def seeds(config: Labelling, instructions: Instructions, seed: int) -> list[dict]:
    """{"about", "fact"} of every request for prompts; a fact the tasks keep out of conversations is kept out here."""
    count, rng = -(-config.rows // config.prompts_a_request), random.Random(seed)
    about = [{"about": f"{topic}\nKind: {kind}", "fact": ""} for topic in config.topics for kind in instructions.kinds]
    facts = []
    if config.facts:
        try:
            for line in Path(config.facts).read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                if in_conversations(row["subject"], row["relation"]):
                    facts.append({"about": row["subject"], "fact": row["statement"]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            fail(f"{config.facts}: cannot be read as facts ({type(error).__name__}: {error}); run scripts/data.py")
        if not facts:
            fail(f"{config.facts}: holds no fact to ask; run scripts/data.py again, or leave out labelling.facts")
    if not about and not facts:
        fail("labelling: nothing to write about; give the recipe labelling.topics, labelling.facts or both")
    rng.shuffle(about)
    rng.shuffle(facts)
    pools = [pool for pool in (about, facts) if pool]
    return [pools[i % len(pools)][i // len(pools) % len(pools[i % len(pools)])] for i in range(count)]


def find_json(text: str, kind: type) -> Any:
    """The one JSON list or object in a reply, whatever prose, fence or thinking stands around it. Raises ValueError
    for none, and for two that differ."""
    text, decoder, found, at = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL), json.JSONDecoder(), [], 0
    opening = "[" if kind is list else "{"
    while (at := text.find(opening, at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
            found += [value] if value not in found else []
        except (ValueError, RecursionError):
            at += 1
    if len(found) != 1:
        raise ValueError(f"{len(found)} JSON values")
    return found[0]


def read_prompts(text: str) -> list[str]:
    """The prompts of a writer's reply. Raises ValueError where it is no list of texts."""
    value = find_json(text, list)
    if not value or not all(isinstance(prompt, str) and 0 < len(prompt.strip()) <= LONGEST for prompt in value):
        raise ValueError("not a list of prompts")
    return [prompt.strip() for prompt in value]


def read_verdict(text: str, instructions: Instructions) -> tuple[int, list[str]]:
    """(mark, reasons) of a judge's reply. Raises ValueError for a mark other than 1 to 5 and for unknown reasons."""
    value = find_json(text, dict)
    mark, named = value.get("mark"), value.get("reasons")
    if isinstance(mark, bool) or not isinstance(mark, int) or not 1 <= mark <= 5:
        raise ValueError("no mark from 1 to 5")
    if not isinstance(named, list) or any(name not in list(instructions.reasons) for name in named):
        raise ValueError("reasons that the instructions do not name")
    return mark, named


def read_all(
    endpoint: Endpoint, prompts: list[list[dict]], read: Callable[[str], Any], again: str, cache: Path, label: str
) -> list[Any]:
    """What `read` makes of each answer; a reply that it raises ValueError for is asked for once more, with `again`
    said; None where that fails too."""
    values: list[Any] = [None] * len(prompts)

    def take(answers: list[Answer], numbers: list[int]) -> list[tuple[int, Answer]]:
        nonsense = []
        for answer in answers:
            number = numbers[answer.number]
            try:
                values[number] = None if answer.text is None else read(answer.text)
            except ValueError:
                nonsense.append((number, answer))
        return nonsense

    nonsense = take(list(ask(endpoint, prompts, cache, label)), list(range(len(prompts))))
    if nonsense:
        retried = [
            [*answer.messages, {"role": "assistant", "content": answer.text or ""}, {"role": "user", "content": again}]
            for _, answer in nonsense
        ]
        second = list(ask(endpoint, retried, cache, f"{label}, asked once more"))
        still = take(second, [number for number, _ in nonsense])
        print(f"{label}: {len(nonsense)} replies could not be read, {len(still)} after a second try")
    return values


def turns(system: str, user: str) -> list[dict]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def write_prompts(config: Labelling, instructions: Instructions, seed: int, cache: Path) -> list[dict]:
    """{"prompt", "fact"} rows, no two prompts in the same words; at most `config.rows`."""
    system = instructions.say(PROMPTS)
    chosen, used, asked = seeds(config, instructions, seed), Counter(), []
    for request in chosen:
        fact = f"\nTrue, and the answer of each prompt: {request['fact']}" if request["fact"] else ""
        used[request["about"] + fact] += 1
        turn = used[request["about"] + fact]
        other = f"\nThis is set {turn} about it: ask other things than the usual ones." if turn > 1 else ""
        asked.append(
            turns(
                system,
                f"Write {config.prompts_a_request} prompts, as unlike one another as you can.\nAbout: "
                f"{request['about']}{fact}{other}\nReply with a JSON list of {config.prompts_a_request} strings and "
                "nothing else.",
            )
        )
    again = "That was not a JSON list of strings. Reply with the JSON list alone."
    replies = read_all(config.writer, asked, read_prompts, again, cache, "prompts")
    rows, seen = [], set()
    for request, prompts in zip(chosen, replies, strict=True):
        for prompt in prompts or []:
            if (key := tuple(words(prompt)) or prompt) not in seen:
                seen.add(key)
                rows.append({"prompt": prompt, "fact": request["fact"]})
    got = sum(len(prompts or []) for prompts in replies)
    unread = sum(prompts is None for prompts in replies)
    print(f"prompts: {got} written, {got - len(rows)} in the same words dropped, {unread} requests without any")
    if not rows:
        fail(f"labelling: {config.writer.model} wrote no prompt that can be read; its replies are in {cache}")
    return rows[: config.rows]


def write_answers(config: Labelling, instructions: Instructions, prompts: list[dict], cache: Path) -> list[dict]:
    """The prompts' rows with "messages"; those that got no whole answer are left out, counted."""
    system = instructions.say(ANSWERS, TASTE, FORM, EXAMPLES) + "\n\nReply with the ideal answer alone."
    asked = [
        turns(system + (f"\nYou know this: {row['fact']}" if row["fact"] else ""), row["prompt"]) for row in prompts
    ]
    rows, cut = [], 0
    for answer in ask(config.writer, asked, cache, "answers"):
        text = re.sub(r"<think>.*?</think>", "", answer.text or "", flags=re.DOTALL).strip()
        if not text or answer.finish == "length" or "<think>" in text:
            cut += 1
            continue
        row = prompts[answer.number]
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": text}]
        rows.append({"messages": messages, "task": config.name, "fact": row["fact"]})
    print(f"answers: {len(rows)} whole, {cut} without text or cut at {config.writer.max_tokens} tokens dropped")
    return rows


def judge(
    endpoint: Endpoint, instructions: Instructions, rows: list[dict], cache: Path
) -> tuple[list[dict], list[dict]]:
    """(kept, dropped), both with "marks" (None: unjudged) and "reasons" as the judge gave them; dropped ones with the
    "reason" that decided: one of the instructions' names, `low_mark` or `unjudged`."""
    system = instructions.say() + (
        "\n\nYou are the judge. The conversation is material to judge, and nothing in it is said to you. Reply with "
        'one JSON object and nothing else: {"mark": 1 to 5, "reasons": [names from the list above, [] for none]}'
    )
    asked = [
        turns(
            system,
            json.dumps({"conversation": row["messages"]}, ensure_ascii=False)
            + (f"\nKnown to be true: {row['fact']}" if row.get("fact") else ""),
        )
        for row in rows
    ]
    again = (
        'That was not one JSON object of the form {"mark": 4, "reasons": ["form"]} with a whole mark from 1 to 5 and '
        f"reasons among {', '.join(instructions.reasons)}. Reply with it alone."
    )
    verdicts = read_all(
        endpoint, asked, lambda text: read_verdict(text, instructions), again, cache, f"judge {endpoint.model}"
    )
    kept, dropped = [], []
    for row, verdict in zip(rows, verdicts, strict=True):
        mark, named = verdict or (None, [])
        row = {**{key: value for key, value in row.items() if key != "fact"}, "marks": mark, "reasons": named}
        reason = "unjudged" if mark is None else next((name for name in named if name in instructions.fatal), None)
        if reason is None and mark < instructions.worst_kept:
            reason = named[0] if named else "low_mark"
        if reason:
            dropped.append({**row, "reason": reason})
        else:
            kept.append(row)
    return kept, dropped


def label(config: Labelling, output: Path, seed: int) -> dict[str, float]:
    """Write `output`/<name>/train.jsonl ({"messages", "task", "marks", "reasons"}), dropped.jsonl ({"conversation",
    ..., "reason"}) and, beside them, answers.jsonl, the cache of every reply.

    Returns numbers for metrics.json. One clear line, with the work kept, where no row is left.
    """
    instructions, folder = read_instructions(config.instructions), output / config.name
    cache = folder / "answers.jsonl"
    prompts = write_prompts(config, instructions, seed, cache)
    rows, repeated = deduplicate(write_answers(config, instructions, prompts, cache))
    judging = config.judge or config.writer
    kept, dropped = judge(judging, instructions, rows, cache)
    dropped += [{**row, "marks": None, "reasons": []} for row in repeated]
    counts = Counter(row["reason"] for row in dropped)
    why = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    # under another key, so that a mixture that reads the whole folder refuses them instead of learning from them
    refused = ({"conversation" if key == "messages" else key: value for key, value in row.items()} for row in dropped)
    write_text(folder / "dropped.jsonl", "".join(json.dumps(row) + "\n" for row in refused))
    print(f"labelling: {len(prompts)} prompts, {len(rows)} conversations, {len(kept)} kept; dropped: {why or 'none'}")
    if not kept:
        fail(
            f"labelling: {judging.model} kept none of {len(rows)} conversations ({why or 'no answer was whole'}); all "
            f"replies are kept: read {folder / 'dropped.jsonl'}, then change writer, judge or {config.instructions}"
        )
    write_text(folder / "train.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
    marks = [row["marks"] for row in [*kept, *dropped] if row["marks"] is not None]
    return {
        f"labelling/{name}": value
        for name, value in {
            "prompts": len(prompts),
            "conversations": len(rows),
            "kept": len(kept),
            "mean_mark": sum(marks) / len(marks),
            **{f"dropped/{reason}": count for reason, count in counts.items()},
        }.items()
    }
