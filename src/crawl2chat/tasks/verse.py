"""Two lines about an animal: something that can be asked and judged, but not verified.

The worked verses are of all qualities on purpose. Each of three things goes well with the probability `care`: the
lines rhyme, the words are vivid, the lengths are right; that the animal is named fails only where it fails twice. An
assistant finetuned on them draws verses of all qualities too, and whoever orders its replies has something to choose
from.
"""

import random
import re
from collections.abc import Iterator
from itertools import product

ANIMALS = """
    ant bat bear bee bird boar bug bull calf camel carp cat chick clam cod cow crab crow deer dog donkey dove duck
    eel elk emu finch fish fox frog goat goose gull hamster hare hen heron horse lamb lark lion lobster mole monkey
    moth mouse mule owl panda pelican pig pony quail rabbit rat seal shark sheep shrew sloth slug squid squirrel
    stork swan tiger toad trout turtle wasp whale wolf worm wren yak
""".split()
WORDINGS = {
    "train": [
        "Write a short verse about {a}.", "Two lines about {a}, please.", "Give me two lines of verse about {a}.",
        "Make a small poem about {a}.", "Can you write a verse about {a}?", "I want two lines about {a}.",
        "Write a poem of two lines about {a}.", "Tell me about {a} in two lines.", "A verse on {a}, please.",
        "Please write a little verse about {a}.", "I would like a poem about {a}.", "Say something of {a} in verse.",
        "What would you write about {a} in two lines?", "May I have two lines on {a}?", "Could you rhyme about {a}?",
        "Let me read a short poem about {a}.", "Think of {a} and make a poem.", "Write me a poem about {a}.",
    ],
    "test": [
        "Write two lines about {a}.", "Write me a verse of two lines about {a}.", "Your poem about {a}, please.",
        "Could you make two lines about {a}?", "May I have a verse about {a}?", "Think of {a} and write two lines.",
    ],
}  # fmt: skip
# how lines end; those of a row rhyme
ENDINGS = [
    ["all the day", "far away", "on its way", "at its play"],
    ["in the night", "by the light", "left and right", "out of sight"],
    ["by the sea", "under a tree", "just like me", "for all to see"],
    ["in the snow", "soft and slow", "high and low", "where flowers grow"],
    ["on the ground", "without a sound", "round and round", "lost and found"],
    ["in its bed", "warm and red", "with lifted head", "for a piece of bread"],
    ["down the street", "on quick feet", "with food to eat", "where rivers meet"],
    ["through the town", "up and down", "with a crown", "black and brown"],
]
RHYMES = {ending.split()[-1]: family for family, row in enumerate(ENDINGS) for ending in row}  # word -> its family
WORDS = {  # short ones, of a token or two to a small vocabulary
    "vivid": {
        "adjective": "golden silver bright wild proud brave tiny merry clever sleepy".split(),
        "verb": "sang laughed shone hummed played swam spun roared cheered raced".split(),
    },
    "plain": {
        "adjective": "big small good old other new".split(),
        "verb": "was sat went came stood fell".split(),
    },
}
NOUNS = ["wind", "river", "rain", "water", "forest", "snow"]


def verse(animal: str, care: float, rng: random.Random) -> str:
    """One verse; what goes well in it is drawn with the probability `care`."""
    rhymed, named, vivid, sized = (rng.random() < p for p in (care, 1 - (1 - care) ** 2, care, care))

    used: set[str] = set()

    def word(kind: str) -> str:
        tone = "vivid" if rng.random() < (0.9 if vivid else 0.1) else "plain"
        left = [word for word in WORDS[tone][kind] if word not in used]
        used.add(found := rng.choice(left or WORDS[tone][kind]))
        return found

    first, other = rng.sample(range(len(ENDINGS)), 2)
    ends = rng.sample(ENDINGS[first], 2) if rhymed else [rng.choice(ENDINGS[row]) for row in (first, other)]
    who = animal if named else "one"
    subject = rng.choice([f"The {word('adjective')} {who}", f"The {who}", f"The {word('adjective')} {who}"])
    opening = f"{subject} {word('verb')}"
    going_on = rng.choice(
        [
            f"and it {word('verb')}",
            f"it {word('verb')} and {word('verb')}",
            f"while the {word('adjective')} {rng.choice(NOUNS)} {word('verb')}",
        ]
    )
    fault = None if sized else rng.choice(["one line", "three lines", "short", "long"])
    if fault == "short":
        return f"The {who} {ends[0]},\n{ends[1]}."
    if fault == "long":
        opening, going_on = (f"{part} and {word('verb')} and {word('verb')} and it {word('verb')}"
                             for part in (opening, going_on))  # fmt: skip
    lines = [f"{opening} {ends[0]}", f"{going_on} {ends[1]}"]
    if fault == "one line":
        return f"{lines[0]}."
    if fault == "three lines":
        lines.append(f"and it {word('verb')} {rng.choice(ENDINGS[other])}")
    return ",\n".join(lines) + "."


def examples(split: str, care: float = 0.5, count: int = 500, seed: int = 0) -> Iterator[dict]:
    """Every animal in every wording of the split before one comes twice; the answer is the animal. A test begins with
    the pelican.

    Raises ValueError for a `care` that is no probability.
    """
    if not 0 <= care <= 1:
        raise ValueError(f"verse: care is a probability, 0 to 1, not {care}")
    rng, writing = random.Random(f"verse {split} {seed}"), random.Random(f"verse written {split} {seed}")
    pool = list(product(WORDINGS[split], ANIMALS))
    asked = []
    for number in range(count):
        if number % len(pool) == 0:
            asked = rng.sample(pool, len(pool))
            if split == "test":
                asked.sort(key=lambda pair: pair != (WORDINGS["test"][0], "pelican"))
        wording, animal = asked[number % len(pool)]
        question = re.sub(r"\ba (?=[aeiou])", "an ", wording.format(a=f"a {animal}"))
        yield {
            "prompt": [{"role": "user", "content": question}],
            "answer": animal,
            "solution": verse(animal, care, writing),
        }


def lines_of(text: str) -> list[list[str]]:
    """The words of every line that has some, without case and marks."""
    lines = [re.findall(r"[a-z']+", line.lower()) for line in text.split("\n")]
    return [line for line in lines if line]


def grade(completion: str, answer: str) -> float:
    """1 where it is two lines that name the animal: the form alone, for how good a verse is nothing can verify."""
    lines = lines_of(completion)
    return float(len(lines) == 2 and any(answer in line or f"{answer}s" in line for line in lines))
