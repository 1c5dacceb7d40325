"""What does one apple cost? The same word problems answered at once, in small steps, or with Python.

So the accuracies of three manners compare, and the tokens they spent: a model needs tokens to think. Steps are column
arithmetic, one small operation at a time, as in `addition`: no step asks for more than one pass can compute.
"""

import random
import re
import zlib
from collections.abc import Iterator
from itertools import islice

PEOPLE = """Anna Ben Carla David Ella Felix Grace Hugo Irene Jack Kate Leo Maria Nora Oscar Paul Rosa Simon Tina Victor
Wendy Adam Betty Carl Diana Eric Fiona George Helen Ivan Julia Kevin Laura Martin Nina Otto Peter Ruth Sam
Thomas""".split()
GOODS = """apple orange lemon pear peach melon banana plum pencil ruler notebook pen candle plate cup spoon lamp chair
book ticket rose carrot onion egg pie cake shirt button ball kite""".split()
WORDINGS = {
    "train": [
        "{who} buys {n} {xs} and {m} {ys}. One {y} costs ${p}. All together costs ${t}. How much is one {x}?",
        "{who} pays ${t} for {n} {xs} and {m} {ys}. A {y} costs ${p}. What does one {x} cost?",
        "For {n} {xs} and {m} {ys} {who} paid ${t}. If each {y} was ${p}, how much was each {x}?",
        "{n} {xs} and {m} {ys} cost ${t}. Each {y} is ${p}. What is the price of one {x}?",
        "{who} has {n} {xs} and {m} {ys} in the basket. The price of a {y} is ${p} and the bill is ${t}. "
        "Find the price of one {x}.",
        "A shop sells {who} {n} {xs} and {m} {ys} for ${t}. The {ys} are ${p} each. How much for one {x}?",
        "{who} bought {n} {xs}, and {m} {ys} at ${p} each. The bill was ${t}. What did one {x} cost?",
        "There are {n} {xs} and {m} {ys} at ${p} each, and {who} pays ${t} for all. How many dollars is one {x}?",
    ],
    "test": [
        "{who} buys {n} {xs} and {m} {ys}. Each {y} costs ${p}. The total is ${t}. What is the cost of one {x}?",
        "{who} wants {n} {xs} and {m} {ys}. Each {y} is ${p}. The total price is ${t}. How much does one {x} cost?",
        "{n} {xs}, {m} {ys} at ${p} each, total ${t}. What is the cost of one {x}?",
    ],
}  # fmt: skip
MANNERS = {
    "direct": {
        "train": ["Answer at once.", "Only the number.", "Say the number at once."],
        "test": ["Answer with the number at once."],
    },
    "steps": {
        "train": ["Think step by step.", "Show your steps.", "Work step by step."],
        "test": ["Go step by step."],
    },
    "python": {
        "train": ["Use Python.", "Use code.", "Calculate with Python."],
        "test": ["Work it out with Python."],
    },
}  # fmt: skip
SIZES = {"small": ((2, 9), (2, 9)), "large": ((11, 39), (101, 199))}  # how many of either
# the two problems of the introduction that every manner is asked: who, n, x, m, y, p, t and the wording
TALK = [("Emily", 3, "apple", 2, "orange", 2, 13, 0), ("Emily", 23, "apple", 177, "orange", 4, 869, 2)]
HEDGES = """or not never no maybe perhaps either probably possibly might may unsure guess about approximately roughly
around least between almost nearly if unless isn't can't wrong""".split()


def times(a: int, b: int) -> str:
    """A product with a single digit b: at once where a is one too, else column by column with carries."""
    if a < 10:
        return f"{a}*{b}={a * b}."
    parts, carry = [], 0
    for digit in str(a)[::-1]:
        total = int(digit) * b + carry
        with_carry = f"+{carry}" if carry else ""
        parts.append(f"{digit}*{b}{with_carry}={total}, write {total % 10}, carry {total // 10}.")
        carry = total // 10
    return f"{' '.join(parts)} {a}*{b}={a * b}."


def minus(a: int, b: int) -> str:
    """a - b >= 0, ones first: where a digit is too small ten is borrowed, and the next column pays it back."""
    parts, borrow, width = [], 0, len(str(a))
    for x, y in zip(str(a)[::-1], str(b).zfill(width)[::-1], strict=True):
        top, owed = int(x), int(y) + borrow
        borrow = int(top < owed)
        top += 10 * borrow
        parts.append(f"{top}-{owed}={top - owed}, borrow {borrow}.")
    return f"{' '.join(parts)} {a}-{b}={a - b}."


def steps(n: int, m: int, p: int, t: int) -> str:
    """What the others cost, what is left, and its share. No spaces in sums: each is a token."""
    rest = t - m * p
    return f"{times(m, p)} {minus(t, m * p)} {rest}/{n}={rest // n}. The answer is {rest // n}."


def split_of(*numbers: int) -> str:
    """One set of numbers in five is held out, in every wording, role and manner; those of the introduction always."""
    if any(set(numbers) == {number for number in talk[:-1] if isinstance(number, int)} for talk in TALK):
        return "test"
    return "test" if zlib.crc32(" ".join(map(str, sorted(set(numbers)))).encode()) % 5 == 0 else "train"


def plural(good: str) -> str:
    return good + ("es" if good.endswith("ch") else "s")


def asked(wording: str, who: str, n: int, x: str, m: int, y: str, p: int, t: int) -> str:
    question = wording.format(who=who, n=n, m=m, p=p, t=t, x=x, y=y, xs=plural(x), ys=plural(y))
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", question)


def problems(split: str, size: str, rng: random.Random) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Questions with their numbers (n, m, p, t), without end; a test begins with the introduction's two."""
    if split == "test":
        for *talk, wording in TALK:
            yield asked(WORDINGS[split][wording], *talk), (talk[1], talk[3], talk[5], talk[6])
    few, many = SIZES[size]
    while True:
        n, m, p, price = rng.randint(*few), rng.randint(*many), rng.randint(2, 9), rng.randint(2, 9)
        who, (x, y), wording = rng.choice(PEOPLE), rng.sample(GOODS, 2), rng.choice(WORDINGS[split])
        t = n * price + m * p
        if split_of(n, m, p, t) == split:
            yield asked(wording, who, n, x, m, y, p, t), (n, m, p, t)


def examples(
    split: str, manner: str = "steps", size: str = "small", count: int = 1000, seed: int = 0
) -> Iterator[dict]:
    """Manner: direct, steps or python, of the same problems. Size: small (one digit of things) or large (up to three).

    Raises ValueError for another manner or size.
    """
    if manner not in MANNERS or size not in SIZES:
        raise ValueError(f"apples: manner is one of {', '.join(MANNERS)} and size of {', '.join(SIZES)}")
    rng, ending = random.Random(f"apples {split} {size} {seed}"), random.Random(f"apples {manner} {seed}")
    for question, (n, m, p, t) in islice(problems(split, size, rng), count):
        answer = str((t - m * p) // n)
        solution = {"direct": f"{answer}.", "steps": steps(n, m, p, t), "python": f"The answer is {answer}."}[manner]
        content = f"{question} {ending.choice(MANNERS[manner][split])}"
        example = {"prompt": [{"role": "user", "content": content}], "answer": answer, "solution": solution}
        if manner == "python":
            example["calls"] = [{"name": "python", "arguments": {"code": f"({t}-{m}*{p})//{n}"}}]
        yield example


def spoken(completion: str) -> str:
    """A reply without its thoughts; a thought that does not end leaves nothing behind it."""
    return completion.rpartition("</think>")[2] if "</think>" in completion else completion.partition("<think>")[0]


def stated(completion: str) -> str:
    """What a reply commits itself to: from the sentence that says "the answer is" on, or all that is spoken."""
    completion = spoken(completion)
    at = completion.lower().find("answer is")
    return completion[max(completion.rfind(mark, 0, at) for mark in ".!?\n") + 1 :] if at >= 0 else completion


def grade(completion: str, answer: str) -> float:
    """1 where the only number after "the answer is", or of a reply without those words, is the answer: not hedged, no
    list, no fraction, no question.
    """
    said = stated(completion)
    words = [word.strip(".,;!\"'`*$()[]") for word in re.split(r"[\s:={}\\]+", said)]
    numbers = {re.sub(r",(?=[0-9]{3})|\.0+$", "", word) for word in words if re.search("[0-9]", word)}
    hedged = set(re.findall(r"[a-z']+", said.lower())) & set(HEDGES)
    return float(numbers == {answer} and not hedged and "?" not in said)
