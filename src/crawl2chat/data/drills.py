"""Textbook drill that is no prose to the web's filters: sums and prices worked step by step, spelling, counting,
comparing, looking up.

It joins the pretraining mixture as a second, named source, as mathematics corpora do. Every drill is written by the
task that will ask it, in its training split and wordings, so nothing held out for the evaluation can leak.
"""

import random
from collections.abc import Iterator, Sequence

from crawl2chat.tasks import addition, apples, comparison, counting, product, spelling

TITLES = {
    "addition": ["Adding two numbers", "Sums", "Addition exercises"],
    "addition_at_once": ["Quick sums", "Sums without steps"],
    "spelling": ["Spelling practice", "Words and letters", "Spelling list"],
    "counting": ["Counting letters", "Letters in words"],
    "comparison": ["Comparing numbers", "Which number is larger"],
    "calculator": ["Python as a calculator", "Products with Python"],
    "apples": ["What things cost", "Prices worked out", "At the shop"],
    "apples_code": ["Prices with Python", "Shopping with Python"],
    "lookup": ["Looking up a register", "A table of people and years"],
}
SYLLABLES = """
    al an ar bel ber can cor dan del el en fer gar hal in jo kar lan
    lor mar mel nor ol per ran ros sal ser tan tor ul van ver wil yan zor
""".split()


def name(rng: random.Random, words: Sequence[str] = ()) -> str:
    """An invented person's name of one to three words, put together from syllables or made of any word, so that a name
    must be copied piece by piece: no list of them can be learned by heart.
    """

    def word() -> str:
        if words and rng.random() < 0.5:
            return rng.choice(words).capitalize()
        return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3))).capitalize()

    return " ".join(word() for _ in range(rng.choice([1, 2, 2, 2, 3])))


def lookup(rng: random.Random, words: Sequence[str]) -> Iterator[str]:
    """A register of invented people and years, then questions that only the register answers, at times with what one
    would search for: copying from context.
    """
    people = {name(rng, words): rng.randint(400, 2020) for _ in range(rng.randint(2, 5))}
    trades = ["painter", "writer", "king", "physicist", "composer", "poet", "chemist", "queen", "singer", "general"]
    for person, year in people.items():
        died = year + rng.randint(20, 90)
        yield rng.choice(
            ["{p} ({y}-{d}) was a {t}.", "{p} was a {t}, born in {y}.", "{p} was born in {y} and died in {d}."]
        ).format(p=person, y=year, d=died, t=rng.choice(trades))
    asked = rng.sample(sorted(people), min(3, len(people)))
    for person in asked:
        query = rng.choice(["", f" Search: {person} born."])
        yield f"When was {person} born?{query} {person} was born in {people[person]}."


def drill_document(kind: str, rng: random.Random, words: Sequence[str]) -> str:
    seed = rng.getrandbits(48)
    if kind == "lookup":
        return "\n".join([rng.choice(TITLES[kind]), *lookup(rng, words)])
    source = {
        "addition": lambda: addition.examples("train", "steps", rng.choice([1, 2, 2, 2, 3]), 4, seed),
        "addition_at_once": lambda: addition.examples("train", "direct", rng.choice([1, 1, 2]), 8, seed),
        "spelling": lambda: spelling.examples("train", words, 8, seed),
        "counting": lambda: counting.examples("train", words, 4, seed),
        "comparison": lambda: comparison.examples("train", 5, seed),
        "apples": lambda: apples.examples("train", "steps", rng.choice(["small", "small", "large"]), 2, seed),
        "apples_code": lambda: apples.examples("train", "python", rng.choice(["small", "large"]), 3, seed),
        "calculator": lambda: product.examples("train", rng.choice([2, 3, 3]), 5, seed),
    }[kind]()
    lines = [rng.choice(TITLES[kind])]
    for example in source:
        call = (
            f" Python: {example['calls'][0]['arguments']['code']} gives {example['answer']}."
            if "calls" in example
            else ""
        )
        lines.append(f"{example['prompt'][-1]['content']}{call} {example['solution']}")
    return "\n".join(lines)


def drill_documents(count: int, seed: int, words: Sequence[str]) -> Iterator[dict]:
    """`count` documents {"text", "id", "source"}; `words` are the words that spelling and counting draw from."""
    rng = random.Random(f"drills {seed}")
    kinds = (
        ["addition"] * 6
        + ["addition_at_once"] * 2
        + ["spelling"] * 2
        + ["counting"] * 2
        + ["comparison"] * 2
        + ["apples"] * 5
        + ["apples_code"] * 2
        + ["calculator"] * 2
        + ["lookup"] * 6
    )
    for i in range(count):
        yield {"text": drill_document(rng.choice(kinds), rng, words), "id": f"drills/{i}", "source": "drills"}
