"""Requests to replies: who is asked, who waits, and how a reply comes about.

No HTTP in here. A request is worked on in a thread (its tools too), at most `at_once` of them; its parts come to the
event loop through a queue, and setting `stopped` ends it at the next token.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.batching import COMPUTING, Batcher
from crawl2chat.chat_request import ChatRequest, Refused, TokensRequest, conversation, room
from crawl2chat.completions import Answers, Choices
from crawl2chat.engine import context_length
from crawl2chat.model import check_fit, count_parameters, load_model
from crawl2chat.protocol import load_tokenizer
from crawl2chat.speaking import Part, is_base, prompt_ids, speak
from crawl2chat.token_probabilities import token_rows


@dataclass
class Served:
    """A checkpoint that clients may ask for."""

    name: str = field(metadata={"help": "the model's name in requests, and on the page"})
    model: str = field(metadata={"help": "a model folder with its tokenizer, or a hub name; loaded when first asked"})


class Checkpoint:
    """A model that is loaded when it is first needed."""

    def __init__(self, served: Served, at_once: int):
        self.name, self.path, self.at_once = served.name, served.model, at_once
        self.lock, self.loaded, self.described = threading.Lock(), None, None

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Batcher]:
        """Model, tokenizer and batch. Raises Refused where the folder cannot be used; the terminal says why."""
        with self.lock:
            if self.loaded is None:
                try:
                    tokenizer = load_tokenizer(self.path)
                    with COMPUTING:  # the library loads with settings of the process: two threads would lose weights
                        model = load_model(self.path).to("cuda" if torch.cuda.is_available() else "cpu").eval()
                    check_fit(model, tokenizer, self.path)
                except SystemExit as error:
                    print(f"chat: {self.name}: {error}", flush=True)
                    raise Refused(503, f"the checkpoint {self.name} cannot be loaded; the terminal says why") from None
                self.loaded = model, tokenizer, Batcher(model, self.at_once)
            return self.loaded

    def info(self) -> dict:
        """What the page shows of it: {"id", "base", "parameters", "context"}, null where it cannot be known."""
        with self.lock:
            if self.described is None:
                row = {"id": self.name, "base": None, "parameters": None, "context": None}
                try:
                    row["base"] = is_base(load_tokenizer(self.path))
                    with COMPUTING, torch.device("meta"):
                        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.path))
                    row |= {"parameters": count_parameters(model), "context": context_length(model)}
                except (SystemExit, Exception) as error:  # an adapter, a folder that is not there yet
                    print(f"chat: {self.name}: {str(error)[:200]}", flush=True)
                    return row
                self.described = row
            return self.described


class Desk:
    """Checkpoints, tools and defaults, and the requests that are worked on or wait."""

    def __init__(
        self,
        checkpoints: Sequence[Served],
        tools: Sequence[Callable] = (),
        defaults: dict[str, Any] | None = None,
        describe_tools: bool = False,
        at_once: int = 8,
        queue: int = 16,
        time_limit: float = 120.0,
    ):
        """`defaults`: temperature, top_k, top_p, max_tokens where a request names none, and the page's `system`."""
        self.checkpoints = {served.name: Checkpoint(served, at_once) for served in checkpoints}
        self.tools, self.describe_tools, self.time_limit = list(tools), describe_tools, time_limit
        usual = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_tokens": 256, "system": ""}
        self.defaults = usual | (defaults or {})
        self.places, self.taken, self.began = at_once + queue, 0, int(time.time())
        self.counting, self.open = threading.Lock(), set()
        self.pool = ThreadPoolExecutor(at_once, thread_name_prefix="reply")

    def find(self, name: str) -> Checkpoint:
        """Raises Refused for a model that is not served."""
        if name not in self.checkpoints:
            known = ", ".join(self.checkpoints)
            raise Refused(404, f"there is no model {name[:80]!r}; there are {known}", "model_not_found", "model")
        return self.checkpoints[name]

    def card(self, name: str) -> dict:
        return {"id": name, "object": "model", "created": self.began, "owned_by": "crawl2chat"}

    def info(self) -> dict:
        models = [checkpoint.info() for checkpoint in self.checkpoints.values()]
        return {"models": models, "tools": [tool.__name__ for tool in self.tools], "defaults": self.defaults}

    def answer(self, asked: ChatRequest) -> Choices:
        """Begin a chat completion. Raises Refused for an unknown model and where everything is taken."""
        name, choices = self.find(asked.model).name, Choices()
        try:
            for number in range(asked.n or 1):
                answers = Answers(name, self.time_limit, number, choices.id)
                choices.all.append(self._begin(answers, partial(self._speak, asked, answers)))
        except Refused:
            choices.stop()
            raise
        return choices

    def tokens(self, asked: TokensRequest) -> Answers:
        """Begin the token view of a conversation."""
        answers = Answers(self.find(asked.model).name, self.time_limit)
        return self._begin(answers, lambda: self._view(asked, answers))

    def close(self) -> None:
        """Stop whatever is being written."""
        for answers in list(self.open):
            answers.stop()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, answers: Answers, work: Callable[[], Iterator]) -> Answers:
        with self.counting:
            if self.taken >= self.places:
                raise Refused(503, f"{self.taken} requests are being answered or wait; come back soon", "overloaded")
            self.taken += 1
            self.open.add(answers)

        def finished(_: object) -> None:
            with self.counting:
                self.taken -= 1
                self.open.discard(answers)

        answers.future = self.pool.submit(answers.work, work)
        answers.future.add_done_callback(finished)
        return answers

    def _speak(self, asked: ChatRequest, answers: Answers) -> Iterator[Part]:
        model, tokenizer, batcher = self.find(asked.model).load()
        own = self.tools if asked.run_tools and asked.tool_choice != "none" and not is_base(tokenizer) else []
        known = {tool.__name__ for tool in self.tools}
        described: Sequence = own if self.describe_tools else []
        # tools that the model was trained with are described only if it was trained so; others it cannot know
        if any(self.describe_tools or tool["function"]["name"] not in known for tool in asked.offered):
            described = asked.offered
        try:
            ids = prompt_ids(tokenizer, asked.conversation(), described)
        except (TemplateError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise Refused(400, f"the chat template refuses the messages: {str(error)[:200]}") from None
        wanted = asked.max_completion_tokens or asked.max_tokens
        limit = room(len(ids), context_length(model), wanted, self.defaults["max_tokens"])
        answers.prompt_tokens, answers.tokenizer = len(ids), tokenizer
        answers.likely = [] if asked.logprobs else None
        top = (asked.top_logprobs or 0) if asked.logprobs else None
        decoder = batcher.decoder(answers.stopped, top, answers.likely)

        def counted(*arguments: object) -> Iterator[tuple[int, int, bool]]:
            for event in decoder(*arguments):
                answers.written += 1
                yield event

        chosen = {key: getattr(asked, key) for key in ("temperature", "top_k", "top_p")}
        chosen = {key: self.defaults[key] if value is None else value for key, value in chosen.items()}
        seed = secrets.randbits(63) if asked.seed is None else asked.seed + answers.number
        spoken = yield from speak(
            model, tokenizer, ids, own, bool(asked.offered), asked.stop or (), max_new_tokens=limit, seed=seed,
            decoder=counted, **chosen
        )  # fmt: skip
        answers.spoken = spoken

    def _view(self, asked: TokensRequest, answers: Answers) -> Iterator[dict]:
        model, tokenizer, _ = self.find(asked.model).load()
        try:
            with COMPUTING:
                rows = token_rows(model, tokenizer, conversation(asked.messages))
        except (TemplateError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise Refused(400, f"the messages cannot be shown: {str(error)[:200]}") from None
        yield {"tokens": rows}
