"""Replies in OpenAI's objects: a chat.completion with its choices, or the chunks of them as they come."""

import asyncio
import json
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from crawl2chat.batching import Likely, Stopped
from crawl2chat.chat_request import Refused
from crawl2chat.speaking import Part

OVER = object()  # comes after a reply's last part


class Answers:
    """A reply's parts as they come, and OpenAI's objects made of them; `number` is its place among the choices."""

    def __init__(self, model: str, limit: float, number: int = 0, name: str = ""):
        """`limit`: seconds that it may take. `name`: the completion's id."""
        self.number, self.id = number, name
        self.model, self.limit, self.deadline = model, limit, time.monotonic() + limit
        self.loop, self.parts, self.stopped = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()
        self.future, self.first, self.spoken = None, None, None
        self.prompt_tokens = self.written = self.seen = 0
        self.unanswered: deque[str] = deque()  # ids of calls whose results are still to come
        self.likely: list[Likely] | None = None
        self.created = int(time.time())

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
        choice = {"index": self.number, "message": message, "finish_reason": self.spoken.reason}
        choice["logprobs"] = None if self.likely is None else {"content": entries}
        body = {"id": self.id, "object": "chat.completion", "created": self.created, "model": self.model}
        more = {"messages": turns} if len(turns) > 1 else {}
        return {**body, "choices": [choice], **more}

    async def chunks(self) -> AsyncIterator[str]:
        """The same as chat.completion.chunk events."""
        calls, role = 0, {"role": "assistant", "content": ""}
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

    def chunk(self, delta: dict | None, reason: str | None = None, logprobs: dict | None = None, **more: dict) -> str:
        choice = {"index": self.number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
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


class Choices:
    """The replies to one chat completion, each written as a request of its own."""

    def __init__(self) -> None:
        self.id, self.all = f"chatcmpl-{secrets.token_hex(12)}", []

    def stop(self) -> None:
        for answers in self.all:
            answers.stop()

    async def begin(self) -> None:
        for answers in self.all:
            await answers.begin()

    async def whole(self) -> dict:
        """A chat.completion with every choice."""
        bodies = [await answers.whole() for answers in self.all]
        return {**bodies[0], "choices": [body["choices"][0] for body in bodies], "usage": self.usage()}

    async def events(self, usage: bool) -> AsyncIterator[str]:
        """The chunks of all choices as they come; what fails on the way ends with an error object."""
        try:
            async for chunk in self._merged():
                yield chunk
            if usage:
                yield self.all[0].chunk(None, usage=self.usage())
        except Refused as error:
            yield f"data: {json.dumps(error.body())}\n\n"
            return
        yield "data: [DONE]\n\n"

    async def _merged(self) -> AsyncIterator[str]:
        ready: asyncio.Queue = asyncio.Queue(1)

        async def pump(answers: Answers) -> None:
            last: object = OVER
            try:
                async for chunk in answers.chunks():
                    await ready.put(chunk)
            except Refused as error:
                last = error
            await ready.put(last)

        tasks = [asyncio.ensure_future(pump(answers)) for answers in self.all]
        try:
            writing = len(tasks)
            while writing:
                item = await ready.get()
                if isinstance(item, Refused):
                    raise item
                if item is OVER:
                    writing -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()

    def usage(self) -> dict:
        """The prompt counts once."""
        written, prompt = sum(answers.written for answers in self.all), self.all[0].prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
