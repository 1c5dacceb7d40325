"""Interviews and quiz evenings written down: one asks, the other knows, as on pages where people talk.

They teach a base model what a written conversation is. No speaker is called Human or Assistant, every dialogue has its
own two names and its own layout, and only facts that training conversations may state are asked, in their wordings: a
fact that is kept out of the conversations stands in no dialogue either.
"""

import random
from collections.abc import Iterator, Sequence

from crawl2chat.data.drills import name
from crawl2chat.data.wording import upper
from crawl2chat.tasks.facts import SOLUTIONS, WORDINGS, in_conversations, read_facts

ROLES = [
    ("Teacher", "Pupil"), ("Visitor", "Guide"), ("Caller", "Operator"), ("Reader", "Editor"), ("Host", "Guest"),
    ("Question", "Answer"), ("Q", "A"), ("Customer", "Clerk"), ("Student", "Librarian"), ("Daughter", "Father"),
    ("Interviewer", "Expert"), ("Boy", "Grandmother"), ("Judge", "Witness"), ("Asked", "Answered"),
]  # fmt: skip
TITLES = [
    "An interview", "A talk in the library", "Questions and answers", "From the evening programme",
    "Overheard at school", "A conversation at the desk", "The quiz of the week", "Ten minutes with an expert",
]  # fmt: skip
STYLES = ("short", "sentence", "statement")  # the manner of all answers of a dialogue


def answer(row: dict, style: str) -> str:
    """The answer to a fact: "Paris.", "It is Paris.", or "The capital of France is Paris."."""
    if style == "statement":
        return upper(row["statement"])
    return f"{row['answer']}." if style == "short" else SOLUTIONS[row["relation"]].format(a=row["answer"])


def dialogue(rng: random.Random, rows: Sequence[dict]) -> str:
    """Five questions of one person and the answers of another; a third of the dialogues have a title."""
    asks, knows = rng.choice(ROLES) if rng.random() < 0.4 else (name(rng).split()[0], name(rng).split()[0])
    style, gap = rng.choice(STYLES), rng.choice(["\n\n", "\n\n", "\n"])
    turns = [rng.choice(TITLES)] if rng.random() < 0.33 else []
    for row in rng.sample(rows, 5):
        question = rng.choice(WORDINGS[row["relation"]]["train"]).format(s=row["subject"])
        turns += [f"{asks}: {upper(question)}", f"{knows}: {answer(row, style)}"]
    return gap.join(turns)


def dialogues(count: int, seed: int, facts: str, ships: Sequence[dict] = ()) -> Iterator[str]:
    """`count` dialogues about the facts of `facts`, the path of facts.jsonl, and about the `ships` that registers name
    most often (the others keep their count); ValueError where no fact is fit to ask.
    """
    rng = random.Random(f"dialogues {seed}")
    most = max((row["pages"] for row in ships), default=0)
    rows = read_facts(facts, tuple(SOLUTIONS)) + [row for row in ships if row["pages"] == most]
    rows = [row for row in rows if in_conversations(row["subject"], row["relation"])]
    for _ in range(count):
        yield dialogue(rng, rows)
