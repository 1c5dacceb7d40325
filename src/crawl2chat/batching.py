"""Replies of several requests written together: one thread a model, a batch that rows join and leave at any step.

`decoding.decode` is given all its prompts at once; here they come when they come, each with its own sampling and end.
A row's random numbers are its own, so what a request becomes does not depend on who else is being answered.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from crawl2chat.decoding import Batch, Sampling, evaluating


class _InTurn:
    """A lock that whoever has waited longest gets: two models' threads take turns."""

    def __init__(self):
        self.changed, self.drawn, self.called = threading.Condition(), 0, 0

    def __enter__(self) -> None:
        with self.changed:
            mine, self.drawn = self.drawn, self.drawn + 1
            self.changed.wait_for(lambda: self.called == mine)

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.called += 1
            self.changed.notify_all()


COMPUTING = _InTurn()  # one model computes at a time: PyTorch's settings and its threads are the process's


class Stopped(Exception):
    """The request that a row was written for is over: its client left, or its time is up."""


@dataclass
class Likely:
    """A token as it was chosen: its log-probability (nats, temperature 1) and the likeliest ids with theirs."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(eq=False)
class Row:
    """One prompt being continued, and where its ids go as they are written."""

    prompt: list[int]
    budget: int
    ends: set[int]
    vocabulary: int
    sampling: Sampling
    uniforms: Sequence[float]
    stopped: threading.Event
    top: int | None  # how many alternatives are wanted with each token; None: no log-probabilities
    left: bool = False  # nobody reads what it writes any more
    written: int = 0
    ids: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)

    @property
    def over(self) -> bool:
        return self.left or self.stopped.is_set()

    @property
    def number(self) -> float:
        """What the next id is drawn with."""
        return self.uniforms[self.written] if self.sampling.temperature else 0.0

    def write(self, token: int, logits: torch.Tensor) -> bool:
        """Hand over the id that was chosen after logits (vocab,). Returns whether it is the last."""
        likely = None
        if self.top is not None:
            nats = logits[: self.vocabulary].float().log_softmax(-1)
            values, ids = nats.topk(min(self.top, len(nats)))
            likely = Likely(token, float(nats[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
        self.written += 1
        finished = token in self.ends or self.written == self.budget
        self.ids.put((token, finished, likely))
        return finished


class Batcher:
    """Decodes what requests give it, at most `at_once` rows together, in a thread that ends with the process."""

    def __init__(self, model: PreTrainedModel, at_once: int):
        self.model, self.at_once = model, at_once
        self.waiting: queue.SimpleQueue[Row] = queue.SimpleQueue()
        self.rows: list[Row] = []  # of the batch, in its order
        threading.Thread(target=self._work, daemon=True).start()

    def decoder(
        self, stopped: threading.Event, top: int | None = None, likely: list[Likely] | None = None
    ) -> Callable[..., Iterator[tuple[int, int, bool]]]:
        """What `engine.stream` takes as its `decoder`, for one request: it ends with Stopped once `stopped` is set,
        and appends a Likely for every token to `likely` where `top` alternatives are wanted."""

        def decode(
            model, prompts, budgets, ends, vocabulary, sampling, uniforms, _
        ) -> Iterator[tuple[int, int, bool]]:
            (prompt,), (budget,), (numbers,) = prompts, budgets, uniforms
            row = Row(list(prompt), budget, ends, vocabulary, sampling, numbers, stopped, top)
            self.waiting.put(row)
            finished = False
            try:
                while not finished:
                    token, finished, found = row.ids.get()
                    if token is None:
                        raise found
                    if top is not None:
                        likely.append(found)
                    yield 0, token, finished
            finally:
                row.left = True

        return decode

    def _work(self) -> None:
        with torch.inference_mode(), evaluating(self.model):
            batch, tokens = None, []
            while True:
                new = self._take()
                with COMPUTING:
                    try:
                        batch, tokens = self._step(batch, tokens, new)
                    except Exception as error:  # such as no memory: everyone concerned is told, and the next may come
                        for row in {*self.rows, *new}:
                            row.ids.put((None, True, error))
                        batch, tokens, self.rows = None, [], []

    def _take(self) -> list[Row]:
        """Rows that begin now; waits for one where none is being written. Who has stopped does not begin."""
        taken: list[Row] = []
        while len(self.rows) + len(taken) < self.at_once:
            try:
                row = self.waiting.get(block=not self.rows and not taken)
            except queue.Empty:
                break
            if row.over:
                row.ids.put((None, True, Stopped()))
            else:
                taken.append(row)
        return taken

    def _step(self, batch: Batch | None, tokens: list[int], new: list[Row]) -> tuple[Batch | None, list[int]]:
        """Let `new` rows in, then write a token in every row. Returns the batch and the ids it has not read yet."""
        if new:
            room = max(row.budget for row in new)
            joining = Batch(self.model, [row.prompt for row in new], max(len(row.prompt) for row in new) + room)
            new, ids = self._written(joining, new)
            if not self.rows:
                batch = joining
            elif new:
                batch.join(joining, max(row.budget - row.written for row in self.rows + new) + 1)
            self.rows, tokens = self.rows + new, tokens + ids
        if any(row.over for row in self.rows):
            for row in self.rows:
                if row.over:
                    row.ids.put((None, True, Stopped()))
            order = batch.keep([at for at, row in enumerate(self.rows) if not row.over])
            self.rows, tokens = [self.rows[at] for at in order], [tokens[at] for at in order]
        if not self.rows:
            return None, []
        batch.write(tokens)
        self.rows, tokens = self._written(batch, self.rows)
        return batch, tokens

    @staticmethod
    def _written(batch: Batch, rows: list[Row]) -> tuple[list[Row], list[int]]:
        """Choose a token in every row; the rows that go on, in the batch's new order, and what each has chosen."""
        alike: dict[tuple[Sampling, int], list[int]] = {}  # rows that choose in the same way choose together
        for at, row in enumerate(rows):
            alike.setdefault((row.sampling, row.vocabulary), []).append(at)
        tokens = [0] * len(rows)
        for (sampling, vocabulary), places in alike.items():
            numbers = torch.tensor([rows[at].number for at in places]).to(batch.logits.device)
            ids = sampling.choose(batch.logits[places, :vocabulary], numbers).tolist()
            for at, token in zip(places, ids, strict=True):
                tokens[at] = token
        ended = [row.write(token, logits) for row, token, logits in zip(rows, tokens, batch.logits, strict=True)]
        alive = [at for at, finished in enumerate(ended) if not finished]
        order = batch.keep(alive) if len(alive) < len(rows) else alive
        return [rows[at] for at in order], [tokens[at] for at in order]
