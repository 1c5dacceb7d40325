r"""Is the answer of a reply right? What stands in an answer's place, compared with math-verify in a killable child.

A reply answers in `\boxed{}`, after "the answer is" (or "answer:"), or with nothing but the answer after `</think>` or
as the whole reply. All that stands in such places must be right: two different answers, a list, a hedge, a taken-back
answer, or other numbers after the answer earn nothing; what is said before a box is thinking aloud and free. Where the
truth is a number, a number must be stated: to repeat the question ("12*13") is no answer.

Equality of formulas is math-verify's. It can hang (9^{9^{9^9}}) and uses signals, so it runs in one worker process
that is killed and replaced when it takes longer than SECONDS. A reply that hangs it is wrong; a worker that cannot
start, dies, or got no processor time raises VerifierError: nobody knows whether the reply was right, so a reward must
be None there, never 0.
"""

import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from fractions import Fraction

import psutil

SECONDS = 2.0  # of one verdict
BUSY = 0.2  # seconds of processor time that tell a formula that hangs from a worker that had no turn
START = 60.0  # seconds that a worker may take to import sympy
MOST = 4  # answers that a reply may state, all the same
LONGEST = 300  # characters of an answer
MEMORY = 2_000_000_000  # bytes of the worker

GUESSES = set("maybe perhaps probably possibly unsure guess either might presumably supposedly".split())
NEGATIONS = set("not no never don't doesn't isn't can't cannot wrong unless nor".split())
HEDGES = GUESSES | NEGATIONS | set("""or may could wait actually alternatively otherwise else rather about
approximately roughly around between almost nearly if instead sorry""".split())  # fmt: skip
HEDGES |= set("two three four five six seven eight nine ten eleven twelve".split())  # another number, in words
MULTIPLES = set("and dozen hundred thousand million billion trillion half halves third thirds quarter".split())
WORD = re.compile(r"[a-z']+")
NUMBER = re.compile(r"(?<![\^\w])(?<!\^\{)[0-9]+(?:[.,][0-9]+)*")  # an exponent is a unit's
STATED = re.compile(r"\banswer\s{0,9}(?:is\b|:)[\s:]{0,9}", re.IGNORECASE)


class VerifierError(RuntimeError):
    """No verdict could be reached, through no fault of the reply's."""


def verdict(completion: str, truth: str) -> float:
    """1.0 where the reply states the truth in an answer's place and nothing else, within SECONDS, else 0.0.

    Raises VerifierError where the verifier itself failed.
    """
    deadline = time.monotonic() + SECONDS
    found = stated(completion, set(WORD.findall(truth.lower())))
    return float(bool(found) and all(_same(text, truth, deadline) for text in dict.fromkeys(found)))


def stated(completion: str, known: Collection[str] = ()) -> list[str]:
    """What a reply commits itself to, place by place; nothing where it hedges, takes back or lists beside them.

    `known`: words that are no hedge here, because the right answer has them.
    """
    text = completion.replace("\u2019", "'")
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return []
    places = _places(text)
    if not places:
        bare = text.strip()
        places = [(0, len(text), bare)] if 0 < len(bare) <= LONGEST and "\n" not in bare else []
    if not places or len(places) > MOST:
        return []
    numbers = {number for _, _, content in places for number in NUMBER.findall(content)}
    nexts = [start for start, _, _ in places[1:]] + [len(text)]
    for (start, end, content), following in zip(places, nexts, strict=True):
        before = text[max(0, start - 300) : start].lower()
        head = set(WORD.findall(re.split(r"[.!?\n](?=\s|$)", before)[-1]))
        tail = text[end:following]
        boxed = text.startswith("\\boxed", start)
        if head & (GUESSES if boxed else GUESSES | NEGATIONS) - set(known) or before.split()[-1:] in (["not"], ["or"]):
            return []
        if (set(WORD.findall(content.lower())) | set(WORD.findall(tail.lower()))) & HEDGES - set(known):
            return []
        if "?" in content or "?" in tail or not set(NUMBER.findall(tail)) <= numbers:
            return []
    return [content for _, _, content in places]


def _places(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of the boxes and, from the first box on, of the statements; at most MOST + 1."""
    found: list[tuple[int, int, str]] = []
    at = text.find("\\boxed{")
    while at >= 0 and len(found) <= MOST:
        begin, depth, end = at + len("\\boxed{"), 1, at + len("\\boxed{")
        while depth and end < min(len(text), begin + LONGEST):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        found.append((at, end, "" if depth else text[begin : end - 1]))  # one without an end holds no answer
        at = text.find("\\boxed{", end)
    first = found[0][0] if found else 0
    for match in STATED.finditer(text, first):
        stop = re.search(r"\n|[.!?;](?=[\s\"'*)]|$)", text[match.end() : match.end() + LONGEST])
        end = match.end() + (stop.end() if stop else LONGEST)
        if not any(start < end and match.start() < finish for start, finish, _ in found):
            found.append((match.start(), min(end, len(text)), text[match.end() : end].rstrip("!")))
        if len(found) > 2 * MOST:
            break
    return sorted(found)


def plain(text: str) -> str:
    """An answer without what does not change it: marks of mathematics and emphasis, spacing commands, a final stop."""
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|:| |\(|\)|\[|\])|\*\*|[$`~]", "", text.replace("\\$", ""))
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace("\u2212", "-").replace("\u00b0", "")
    text = re.sub(r"\^\{?\\circ\}?|\\%|%", "", text).replace("\u03c0", "\\pi")
    text = re.sub(r"(?<![\\a-z])sqrt\(([^()]{1,50})\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-z])pi\b", r"\\pi ", text)
    text = re.sub(r"^\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}$", r"\1", text.strip())
    return " ".join(text.split()).strip("\"'").rstrip(".,;: ").lstrip(": ")


def number(text: str) -> Fraction | None:
    """The value of a plain number: 12, -3.50, 1,000, 2/3 or \\frac{2}{3}; None for anything else."""
    if len(text) > 60:
        return None
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?:[^0-9]|$))", "", text.replace(" ", "") if "/" in text else text)
    text = re.sub(r"^([+-]?)\\frac\{?(-?[0-9]+?)\}?\{?(-?[0-9]+)\}?$", r"\1\2/\3", text)
    match = re.fullmatch(r"([+-]?)([0-9]*\.?[0-9]+|[0-9]+\.)(?:/(-?[0-9]+))?", text)
    if match is None or match[3] and int(match[3]) == 0:
        return None
    return Fraction(match[1] + match[2].rstrip(".")) / int(match[3] or 1)


def _without_unit(text: str) -> str:
    """A quantity without the words after it ("18 dollars", "3 \\text{ cm}^2"): not those that multiply it."""
    text = re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r" \1 ", text)
    match = re.fullmatch(r"(.*[0-9})])\s*([A-Za-z][A-Za-z\s/.'-]{1,40})(?:\^\{?[23]\}?)?", text)
    return match[1].strip() if match and not set(WORD.findall(match[2].lower())) & MULTIPLES else text


def _parts(text: str) -> int:
    """How many things a list names."""
    return len(re.split(r"[,;&\n]|\band\b|\\quad|\\pm", re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?:[^0-9]|$))", "", text)))


def _same(text: str, truth: str, deadline: float) -> bool:
    said, wanted = plain(text), plain(truth)
    if not said or len(said) > LONGEST or not said.isascii() or not said.isprintable() or "<|" in said:
        return bool(said) and said == wanted
    if said == wanted or said.lower() == wanted.lower() and re.search("[A-Za-z]{2}", wanted):
        return True
    if "=" in said and "=" not in wanted:
        left, _, said = said.rpartition("=")
        said = said.strip()
        if "=" in left or number(left.strip()) not in (None, number(said)):
            return False
        if number(wanted) is None and re.search("[0-9]", left):
            return False
    said = _without_unit(said) if _without_unit(wanted) == wanted else said
    if number(wanted) is not None:
        return number(said) == number(wanted)
    said = re.sub(r"\s*(?:\\text\{\s*and\s*\}|\band\b)\s*", ", ", said) if "," in wanted else said
    words = set(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", said))
    if _parts(said) != _parts(wanted) or re.search(r"\\approx|\\sim", said) or re.search(r"[0-9]\s+[0-9]", said):
        return False
    if words - set(re.findall(r"[A-Za-z]{2,}", wanted)) - {"pmatrix", "bmatrix", "matrix", "cases"}:
        return False
    return WORKER.same(said, wanted, deadline)


class Worker:
    """One process that compares formulas, started when first needed and again after it was killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.owner, self.ready, self.lock = 0, False, threading.Lock()

    def same(self, said: str, wanted: str, deadline: float) -> bool:
        """Whether two formulas are equal; False where the comparison itself takes until the deadline.

        The start of a process does not count. Raises VerifierError where no verdict could be reached.
        """
        with self.lock:
            began = time.monotonic()
            self._start()
            deadline += time.monotonic() - began
            worker = psutil.Process(self.process.pid)
            used = sum(worker.cpu_times()[:2])
            try:
                self.process.stdin.write(json.dumps([said, wanted]).encode() + b"\n")
                self.process.stdin.flush()
                line = self._line(deadline - time.monotonic())
                if line is None:
                    used = sum(worker.cpu_times()[:2]) - used
            except (OSError, psutil.Error):
                line = b""
            if line:
                return json.loads(line)
            self.stop()
            self._spawn()  # the next verdict does not wait for it
            if line is None and used > BUSY:
                return False
            raise VerifierError(f"the verifier {'died' if line == b'' else f'got no processor for {SECONDS:g} s'}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
        self.process = None

    def _start(self) -> None:
        if self.owner != os.getpid():
            self.process = None  # of the process that this one was forked from
        if self.process is None or self.process.poll() is not None:
            self._spawn()
        if not self.ready and not self._line(START):
            self.stop()
            raise VerifierError("the verifier did not start; is math-verify installed (requirements.txt)?")
        self.ready = True

    def _spawn(self) -> None:
        code = "import sys; sys.path[:] = sys.argv[1:]; from crawl2chat.verifier import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True, bufsize=0,
        )  # fmt: skip
        self.owner, self.ready = os.getpid(), False

    def _line(self, seconds: float) -> bytes | None:
        """The worker's next line: b"" where it ended, None where there was none in time."""
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN | select.POLLHUP)
        return self.process.stdout.readline() if poll.poll(max(0, seconds) * 1000) else None


WORKER = Worker()


def serve() -> None:
    """The worker: a line [said, wanted] in, a line true or false out, until the input ends."""
    import logging
    import resource
    import signal

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no verdict

    def read(text: str) -> list:
        config = [LatexExtractionConfig()]
        return parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None)

    verify(read("x+\\sqrt{12}"), read("2\\sqrt{3}+x"), timeout_seconds=None)  # loads what is loaded at first use
    print(file=out)

    for line in sys.stdin:
        signal.alarm(int(5 * SECONDS))  # ends it even where nobody is left to kill it
        said, wanted = json.loads(line)
        try:
            right = bool(verify(read(wanted), read(said), timeout_seconds=None))
        except Exception:  # a formula that cannot be read or compared is not the right one
            right = False
        signal.alarm(0)
        print(json.dumps(right), file=out)
