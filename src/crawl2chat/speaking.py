"""A reply as the terminal and the server show it: thoughts, words, calls and results, in the order they come.

A chat model answers in its own template. A base model goes on with a page that reads like a conversation
(chat_templates/transcript.jinja), and its answer ends where somebody else begins to speak.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.engine import Piece, Reply, stream
from crawl2chat.evaluation import NEXT_SPEAKER
from crawl2chat.protocol import CHAT_TEMPLATES, END_OF_TEXT

PERHAPS_NEXT = re.compile(r"\n\s*(?:\w[\w ]{0,20})?$")  # what may yet become evaluation.NEXT_SPEAKER
CALLS = ("tool_calls", "search_calls")  # the response template's fields that hold calls


class Part(NamedTuple):
    """Something that is shown: "thought" and "words" come in pieces, a "call" and a "result" whole.

    `ids` are those that the model wrote a piece with; `name` is the tool's; `text` of a call is its arguments' JSON.
    """

    kind: str
    text: str
    ids: tuple[int, ...] = ()
    name: str = ""


@dataclass
class Spoken:
    """A finished reply and why it ended: "stop", "length", or "tool_calls" where the asker must answer them."""

    reply: Reply
    reason: str


def is_base(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model with this tokenizer only continues documents."""
    return tokenizer.chat_template is None or tokenizer.eos_token == END_OF_TEXT


def as_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict]) -> list[dict]:
    """The messages with every control token that is spelt in them broken by a space, as our chat templates do it: a
    template from elsewhere would make it real. The assistant's words keep the marks of thoughts and calls."""
    special, every = tokenizer.all_special_tokens, tokenizer.get_added_vocab()

    def broken(message: dict) -> dict:
        text = message.get("content")
        if not isinstance(text, str):
            return message
        for token in special if message["role"] == "assistant" and not is_base(tokenizer) else every:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return {**message, "content": text}

    return [broken(message) for message in messages]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict], described: Sequence[dict | Callable] = ()
) -> list[int]:
    """The ids that a reply to the messages begins after; `described` tools stand in the system message.

    Those of training (protocol.loss_mask) and the header of a turn. Raises what a template raises about its messages.
    """
    messages = as_text(tokenizer, messages)
    if is_base(tokenizer):
        document = (tokenizer.eos_token or "") + transcript(tokenizer, messages) + "Assistant:"
        return tokenizer(document, add_special_tokens=False)["input_ids"]
    options = {"add_generation_prompt": True, "return_dict": False}
    return tokenizer.apply_chat_template(messages, tools=list(described) or None, **options)


def transcript(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict]) -> str:
    """The conversation as a page prints it."""
    template = (CHAT_TEMPLATES / "transcript.jinja").read_text(encoding="utf-8")
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)


def speak(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    tools: Sequence[Callable] = (),
    read_calls: bool = True,
    stop: Sequence[str] = (),
    **options,
) -> Iterator[Part]:
    """The reply after a prompt's `ids`, part by part; the generator's return value is a Spoken.

    Calls to `tools` are run on the way; a base model calls none. With `read_calls` and no tools the calls come as
    parts and end the reply; with neither, they are a part of its words. The reply ends before the first of the texts
    `stop` that it comes to write.
    `options` are engine.stream's: max_new_tokens, temperature, top_k, top_p, seed, decoder.
    """
    base, reply, seen = is_base(tokenizer), Reply(prompt_ids=list(ids)), 0
    tools = () if base else tools
    held = _Held(stop, base)
    turn = _Turn(tokenizer, plain=base, calls=read_calls or bool(tools))
    for piece in (pieces := stream(model, tokenizer, [], tools, reply=reply, **options)):
        if piece.role == "tool":
            if reply.messages[seen]["role"] == "assistant":  # the turn that called is over
                yield from turn.end(held.rest(), reply.messages[seen], True)
                turn, seen = _Turn(tokenizer, plain=base, calls=True), seen + 1
            yield Part("result", piece.text, name=reply.messages[seen]["name"])
            seen += 1
            continue
        released, hit = held.feed(piece)
        for one in released:
            yield from turn.feed(one)
        if hit:
            pieces.close()
            yield from turn.end([], {}, False)
            reply.messages.append({"role": "assistant", "content": turn.words} | turn.thinking())
            return Spoken(reply, "stop")
    last = reply.messages[-1]
    if last["role"] == "assistant":
        yield from turn.end(held.rest(), last, reply.ended and read_calls and not tools)
    if base:
        reply.messages[-1] = {"role": "assistant", "content": turn.words}
    called = not base and not tools and read_calls and last.get("tool_calls")
    return Spoken(reply, "length" if not reply.ended else "tool_calls" if called else "stop")


class _Held:
    """Pieces that wait while they may be the beginning of a text that ends the reply: one of `stops`, or the `page`'s
    next speaker; white space around what a page says is dropped."""

    def __init__(self, stops: Sequence[str], page: bool):
        self.stops, self.page, self.begun, self.pieces = stops, page, False, []

    def feed(self, piece: Piece) -> tuple[list[Piece], bool]:
        """The pieces that can be shown now, and whether the reply ends here."""
        self.pieces.append(piece)
        text = "".join(waiting.text for waiting in self.pieces)
        found = [at for at in map(text.find, self.stops) if at >= 0]
        if self.page and (speaker := NEXT_SPEAKER.search(text)):
            found.append(speaker.start())
        if found:
            return self._release(self._shown(text[: min(found)]), cut=True), True
        sure = self._shown(text)
        if self.page and (perhaps := PERHAPS_NEXT.search(text)):
            sure = min(sure, self._shown(text[: perhaps.start()]))
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    sure = min(sure, self._shown(text[: len(text) - length]))
                    break
        return self._release(sure), False

    def rest(self) -> list[Piece]:
        """What waits when the reply has ended of itself."""
        text = "".join(waiting.text for waiting in self.pieces)
        return self._release(self._shown(text), cut=True)

    def _shown(self, text: str) -> int:
        return len(text.rstrip() if self.page else text)

    def _release(self, length: int, cut: bool = False) -> list[Piece]:
        released = []
        while self.pieces and (length >= len(self.pieces[0].text) or cut and length > 0):
            piece = self.pieces.pop(0)
            text, length = piece.text[:length], max(length - len(piece.text), 0)
            if self.page and not self.begun:
                text = text.lstrip()
                self.begun = bool(text)
            released.append(piece._replace(text=text))
        return released


class _Turn:
    """One turn of the model's, read with its response template while it is written."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, plain: bool, calls: bool):
        template = None if plain else getattr(tokenizer, "response_template", None)
        self.openers = []
        if template is not None:
            fields = template["fields"]
            opening = [fields[name] for name in CALLS if name in fields]
            self.openers = [field.get("open_pattern") or re.escape(field["open"]) for field in opening]
            kept = {name: field for name, field in fields.items() if calls or name not in CALLS}
            template = {**template, "fields": kept}
        self.parser = tokenizer.get_response_parser(template, prefix="") if template is not None else None
        self.raw, self.words, self.thought, self.calling, self.ids = "", "", "", False, ()

    def feed(self, piece: Piece) -> Iterator[Part]:
        """What a piece of the turn adds. Once a call has begun nothing is shown until the turn's end."""
        self.raw += piece.text
        self.ids += piece.ids
        if self.parser is None:
            yield self._part("words", piece.text)
        else:
            yield from self._parts(self.parser.feed(piece.text))

    def end(self, rest: Sequence[Piece], message: dict, answered: bool) -> Iterator[Part]:
        """The last parts: `rest` of the pieces, then the calls of `message` where somebody answers them. A call that
        nobody answers, or that cannot be read, stays the text that it is."""
        for piece in rest:
            yield from self.feed(piece)
        if self.parser is not None:
            yield from self._parts(self.parser.finalize()[1])
        if not self.calling:
            return
        calls = message.get("tool_calls") if answered else None
        if not calls:
            opener = re.compile("|".join(self.openers)).search(self.raw, len(self.words) + len(self.thought))
            yield self._part("words", self.raw[opener.start() :] if opener else "")
            return
        if len(message.get("content") or "") > len(self.words):
            yield self._part("words", message["content"][len(self.words) :])
        for call in calls:
            function = call["function"]
            arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
            yield Part("call", arguments, self._taken(), function["name"])

    def thinking(self) -> dict[str, str]:
        return {"thinking": self.thought} if self.thought else {}

    def _parts(self, events: list[dict]) -> Iterator[Part]:
        for event in events:
            self.calling |= event["field"] in CALLS
            if event["type"] == "region_chunk" and not self.calling:
                yield self._part("words" if event["field"] == "content" else "thought", event["text"])

    def _part(self, kind: str, text: str) -> Part:
        if kind == "words":
            self.words += text
        else:
            self.thought += text
        return Part(kind, text, self._taken())

    def _taken(self) -> tuple[int, ...]:
        taken, self.ids = self.ids, ()
        return taken
