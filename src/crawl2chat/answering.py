"""Requests to replies in OpenAI's objects: who is asked, who waits, and what a reply looks like on the wire.

No HTTP in here. A request is worked on in a thread (its tools too), at most `at_once` of them; its parts come to the
event loop through a queue, and setting `stopped` ends it at the next token.
"""

import asyncio
import json
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.batching import COMPUTING, Batcher, Likely, Stopped
from crawl2chat.chat_request import ChatRequest, Refused, TokensRequest, conversation, room
from crawl2chat.engine import context_length
from crawl2chat.model import check_fit, count_parameters, load_model
from crawl2chat.protocol import load_tokenizer
from crawl2chat.speaking import Part, is_base, prompt_ids, speak
from crawl2chat.token_probabilities import token_rows

OVER = object()  # comes after a request's last part


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

    def answer(self, asked: ChatRequest) -> "Answers":
        """Begin a chat completion. Raises Refused for an unknown model and where everything is taken."""
        answers = Answers(self, self.find(asked.model).name)
        return self._begin(answers, lambda: self._speak(asked, answers))

    def tokens(self, asked: TokensRequest) -> "Answers":
        """Begin the token view of a conversation."""
        answers = Answers(self, self.find(asked.model).name)
        return self._begin(answers, lambda: self._view(asked, answers))

    def close(self) -> None:
        """Stop whatever is being written."""
        for answers in list(self.open):
            answers.stop()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, answers: "Answers", work: Callable[[], Iterator]) -> "Answers":
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

    def _speak(self, asked: ChatRequest, answers: "Answers") -> Iterator[Part]:
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
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        spoken = yield from speak(
            model, tokenizer, ids, own, bool(asked.offered), asked.stop or (), max_new_tokens=limit, seed=seed,
            decoder=counted, **chosen
        )  # fmt: skip
        answers.spoken = spoken

    def _view(self, asked: TokensRequest, answers: "Answers") -> Iterator[dict]:
        model, tokenizer, _ = self.find(asked.model).load()
        try:
            with COMPUTING:
                rows = token_rows(model, tokenizer, conversation(asked.messages))
        except (TemplateError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise Refused(400, f"the messages cannot be shown: {str(error)[:200]}") from None
        yield {"tokens": rows}


class Answers:
    """One request's parts as they come, and OpenAI's objects made of them."""

    def __init__(self, desk: Desk, model: str):
        self.model, self.deadline = model, time.monotonic() + desk.time_limit
        self.loop, self.parts, self.stopped = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()
        self.limit, self.future, self.first, self.spoken = desk.time_limit, None, None, None
        self.prompt_tokens = self.written = self.seen = 0
        self.unanswered: deque[str] = deque()  # ids of calls whose results are still to come
        self.likely: list[Likely] | None = None
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def work(self, parts: Callable[[], Iterator]) -> None:
        """In a thread: put every part into the queue, then OVER or what was raised."""
        last: object = OVER
        try:
            for part in parts():
                self._put(part)
                if self.stopped.is_set():
                    break
        except (Refused, Stopped) as error:
            last = error
        except Exception as error:
            print(f"chat: {self.model} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
            last = Refused(500, "the server failed; its terminal says why")
        self._put(last)

    def _put(self, item: object) -> None:
        try:
            self.loop.call_soon_threadsafe(self.parts.put_nowait, item)
        except RuntimeError:  # the server has ended
            self.stopped.set()

    def stop(self) -> None:
        """End the writing: nobody wants it, or it has ended already."""
        self.stopped.set()
        if self.future is not None:
            self.future.cancel()

    async def next(self) -> Any:
        """The next part, or OVER. Raises Refused with what went wrong, or that the time is up."""
        try:
            item = await asyncio.wait_for(self.parts.get(), max(self.deadline - time.monotonic(), 0.001))
        except (TimeoutError, asyncio.TimeoutError):
            self.stop()
            raise Refused(504, f"the reply took longer than {self.limit:g} s", "timeout") from None
        if isinstance(item, Refused):
            raise item
        if isinstance(item, Stopped):
            raise Refused(503, "the server is stopping")
        return item

    async def begin(self) -> None:
        """Wait for the first part, so that what is wrong with a request is its status and not a part of a stream."""
        self.first = await self.next()

    async def only(self) -> dict:
        return await self.next()

    async def rest(self) -> AsyncIterator[Part]:
        item = self.first
        while item is not OVER:
            yield item
            item = await self.next()

    async def whole(self) -> dict:
        """A chat.completion. Where the server ran tools, `messages` holds every new turn."""
        turns: list[dict] = []
        entries: list[dict] = []
        async for part in self.rest():
            entries += self.logprobs(part)
            if part.kind == "result":
                turns.append(self.delta(part, 0))
                continue
            if not turns or turns[-1]["role"] == "tool":
                turns.append({"role": "assistant", "content": ""})
            for key, value in self.delta(part, len(turns[-1].get("tool_calls", []))).items():
                turns[-1][key] = turns[-1][key] + value if key in turns[-1] else value
        for turn in turns:
            turn.update({"content": turn["content"] or None} if turn.get("tool_calls") else {})
            for call in turn.get("tool_calls", []):
                call.pop("index")
        message = next((turn for turn in reversed(turns) if turn["role"] == "assistant"), None)
        message = message or {"role": "assistant", "content": ""}
        choice = {"index": 0, "message": message, "finish_reason": self.spoken.reason}
        choice["logprobs"] = None if self.likely is None else {"content": entries}
        body = {"id": self.id, "object": "chat.completion", "created": self.created, "model": self.model}
        more = {"messages": turns} if len(turns) > 1 else {}
        return {**body, "choices": [choice], "usage": self.usage(), **more}

    async def events(self, usage: bool) -> AsyncIterator[str]:
        """The same as chat.completion.chunk events; one that fails on the way ends with an error object."""
        calls, role = 0, {"role": "assistant", "content": ""}
        try:
            yield self.chunk(role)
            async for part in self.rest():
                delta = self.delta(part, calls)
                calls += part.kind == "call"
                if part.kind != "result" and not role:
                    delta, role = {"role": "assistant", **delta}, {"role": "assistant"}
                elif part.kind == "result":
                    role, calls = {}, 0
                entries = self.logprobs(part)
                yield self.chunk(delta, logprobs={"content": entries} if entries else None)
            yield self.chunk({}, reason=self.spoken.reason)
            if usage:
                yield self.chunk(None, usage=self.usage())
        except Refused as error:
            yield f"data: {json.dumps(error.body())}\n\n"
            return
        yield "data: [DONE]\n\n"

    def chunk(self, delta: dict | None, reason: str | None = None, logprobs: dict | None = None, **more: dict) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        body = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        body |= {"choices": [] if delta is None else [choice], **more}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    def delta(self, part: Part, calls: int) -> dict:
        """What a part adds to a message; `calls` were in it before."""
        if part.kind == "result":
            answered = {"tool_call_id": self.unanswered.popleft()} if self.unanswered else {}
            return {"role": "tool", "name": part.name, "content": part.text, **answered}
        if part.kind == "call":
            self.unanswered.append(f"call_{secrets.token_hex(12)}")
            function = {"name": part.name, "arguments": part.text}
            call = {"index": calls, "id": self.unanswered[-1], "type": "function", "function": function}
            return {"tool_calls": [call]}
        return {"content" if part.kind == "words" else "reasoning_content": part.text}

    def usage(self) -> dict:
        total = self.prompt_tokens + self.written
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.written, "total_tokens": total}

    def logprobs(self, part: Part) -> list[dict]:
        """OpenAI's entries for the ids of a part, where they were asked for; end tokens have none."""
        entries = []
        for token in part.ids if self.likely is not None else ():
            while self.likely[self.seen].id != token:
                self.seen += 1
            found, self.seen = self.likely[self.seen], self.seen + 1
            top = [self.entry(other, nats) for other, nats in found.top]
            entries.append({**self.entry(token, found.logprob), "top_logprobs": top})
        return entries

    def entry(self, token: int, nats: float) -> dict:
        text = self.tokenizer.decode([token])
        return {"token": text, "logprob": max(nats, -9999.0), "bytes": list(text.encode("utf-8"))}
