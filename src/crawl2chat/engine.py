"""Conversations in, replies out: generate, run the tools a reply calls, put the results back, until the turn ends.

What the model wrote is kept as the ids it wrote, never tokenized again; a tool's result enters as the ids that the
chat template gives it. How a reply spells its calls is read by the tokenizer's response template.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from jinja2 import TemplateError
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.decoding import Sampling, decode
from crawl2chat.protocol import END_OF_TEXT, end_tokens, read_reply
from crawl2chat.tools import for_one_reply
from crawl2chat.tools.limit import shown

MAX_TOOL_ROUNDS = 4


@dataclass
class Reply:
    """What came after a conversation: the new turns as messages, and the ids they are made of."""

    messages: list[dict] = field(default_factory=list)  # assistant and tool turns
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[int] = field(default_factory=list)
    completion_mask: list[int] = field(default_factory=list)  # 1: the model wrote it, 0: a tool's result and its marks
    ended: bool = False  # the model closed its last turn itself, and no call in it is left unanswered

    @property
    def text(self) -> str:
        """The words of the last assistant turn."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "assistant"), "")


class Completion(NamedTuple):
    """A continuation: its text and ids, without the end token, and whether it came to one."""

    text: str
    ids: list[int]
    ended: bool


class Piece(NamedTuple):
    """A piece of a reply as it is made; `role` is "assistant" for what the model writes and "tool" for a result.
    `ids` are those that the model wrote it with."""

    role: str
    text: str
    ids: tuple[int, ...] = ()


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict]],
    tools: Sequence[Callable] = (),
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    describe_tools: bool = False,
    first: int = 0,
) -> list[Reply]:
    """Reply to every conversation (a list of messages), running calls to `tools` (typed functions) on the way;
    tools with a `session()` keep their variables from call to call of one reply.

    `max_new_tokens` bounds what the model itself writes in a reply, all its turns together. With `describe_tools` the
    chat template tells the model about the tools: for models that were trained so. Temperature 0 is greedy. What a
    conversation draws depends on the seed and its number, which begins at `first`: a batch may be shared out.
    Raises ValueError for a conversation that fills the model's context.
    """
    replies = _prompts(model, tokenizer, conversations, tools if describe_tools else None)
    sampling = Sampling(temperature, top_k, top_p)
    bar = tqdm(total=len(replies), unit="reply", disable=not progress)
    for _, role, _ in _converse(model, tokenizer, replies, tools, max_new_tokens, sampling, seed, batch_size, first):
        bar.update(role == "done")
    bar.close()
    return replies


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict],
    tools: Sequence[Callable] = (),
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    describe_tools: bool = False,
    reply: Reply | None = None,
    decoder: Callable[..., Iterator[tuple[int, int, bool]]] | None = None,
) -> Iterator[Piece]:
    """One reply, piece by piece as it is made (see `generate`); the generator's return value is the Reply.

    `reply`, a Reply with prompt_ids, is filled in place of a new one made of `messages`: its turns can be read
    meanwhile. `decoder` is called in place of `decode`, with one prompt: a server decodes several requests together.
    """
    replies = [reply] if reply else _prompts(model, tokenizer, [messages], tools if describe_tools else None)
    ends, ids, shown, waiting = _ends(model, tokenizer), [], "", ()
    sampling = Sampling(temperature, top_k, top_p)
    for _, role, what in _converse(
        model, tokenizer, replies, tools, max_new_tokens, sampling, seed, 1, decoder=decoder
    ):
        if role == "assistant" and what not in ends:
            ids.append(what)
            waiting += (what,)
        text = tokenizer.decode(ids)
        # a character may still be in parts; at the turn's end it stays so
        if waiting and len(text) > len(shown) and (role != "assistant" or not text.endswith("\ufffd")):
            yield Piece("assistant", text[len(shown) :], waiting)
            shown, waiting = text, ()
        if role == "tool":
            ids, shown, waiting = [], "", ()
            yield Piece("tool", what)
    return replies[0]


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Completion]:
    """Go on with each text as a base model does. A prompt is taken as it is: END_OF_TEXT begins a new document."""
    ids = [_encode(tokenizer, prompt) for prompt in prompts]
    ends, written = _ends(model, tokenizer), [[] for _ in ids]
    budgets = [min(max_new_tokens, room) for room in _rooms(model, ids)]
    uniforms = _uniforms(len(ids), max_new_tokens if temperature else 0, seed)
    bar = tqdm(total=len(ids), unit="text", disable=not progress)
    for i, token, finished in decode(
        model, ids, budgets, ends, len(tokenizer), Sampling(temperature, top_k, top_p), uniforms, batch_size
    ):
        written[i].append(token)
        bar.update(finished)
    bar.close()
    completions = []
    for row in written:
        ended = row[-1] in ends
        row = row[:-1] if ended else row
        completions.append(Completion(tokenizer.decode(row), row, ended))
    return completions


@torch.inference_mode()
def next_token_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> torch.Tensor:
    """Probability of every token after each prompt, as floats (prompts, vocab) on the CPU."""
    rows = []
    for prompt in prompts:
        ids = torch.tensor([_encode(tokenizer, prompt)], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -1, : len(tokenizer)]
        rows.append(logits.float().softmax(-1).cpu())
    return torch.stack(rows)


def next_token_distribution(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, k: int = 10
) -> list[tuple[str, float]]:
    """The `k` likeliest next tokens after a text, each with its probability, the likeliest first."""
    probabilities, ids = next_token_probabilities(model, tokenizer, [prompt])[0].topk(min(k, len(tokenizer)))
    return [(tokenizer.decode([i]), p) for i, p in zip(ids.tolist(), probabilities.tolist(), strict=True)]


def run_call(call: dict, tools: Sequence[Callable]) -> tuple[str, str]:
    """Name and result of one tool call of a message. A call that the model got wrong (not JSON, an unknown tool, wrong
    arguments) gives it a line that says so; what a tool raises is the tool's fault and passes through."""
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return "error", 'error: the call is not JSON of the form {"name": ..., "arguments": {...}}'
    name, arguments = function["name"], function.get("arguments", {})
    tool = next((tool for tool in tools if tool.__name__ == name), None)
    if tool is None:
        return "error", f"error: no tool named {name!r}; there is {', '.join(tool.__name__ for tool in tools)}"
    if not isinstance(arguments, dict):
        return name, f"error: the arguments of {name} are not an object"
    signature = inspect.signature(tool)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        return name, f"error: {name}: {error}"
    for key, value in arguments.items():
        wanted = signature.parameters[key].annotation
        if isinstance(wanted, type) and wanted is not inspect.Parameter.empty and not isinstance(value, wanted):
            return name, f"error: {name}: {key} must be {wanted.__name__}, not {type(value).__name__}"
    return name, shown(str(tool(**arguments)))


def _converse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    replies: list[Reply],
    tools: Sequence[Callable],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    batch_size: int,
    first: int = 0,
    decoder: Callable[..., Iterator[tuple[int, int, bool]]] | None = None,
) -> Iterator[tuple[int, str, int | str]]:
    """Fill the replies, round by round: everyone writes a turn, those who called tools are answered and write another.

    A reply's tools are its own (see for_one_reply), made at its first call and dropped when it is done.
    Yields (number, "assistant", id), (number, "tool", result) and, once a reply, (number, "done", "").
    """
    ends = _ends(model, tokenizer)
    uniforms = _uniforms(first + len(replies), max_new_tokens if sampling.temperature else 0, seed)[first:]
    writing = list(range(len(replies)))
    own_tools: dict[int, list[Callable]] = {}
    for tool_round in range(MAX_TOOL_ROUNDS + 1):
        prompts = [replies[i].prompt_ids + replies[i].completion_ids for i in writing]
        written = [sum(replies[i].completion_mask) for i in writing]
        budgets = [min(max_new_tokens - n, room) for n, room in zip(written, _rooms(model, prompts), strict=True)]
        numbers = [uniforms[i][n:] for i, n in zip(writing, written, strict=True)]
        turns: list[list[int]] = [[] for _ in writing]
        called = {}
        for row, token, finished in (decoder or decode)(
            model, prompts, budgets, ends, len(tokenizer), sampling, numbers, batch_size
        ):
            i = writing[row]
            turns[row].append(token)
            yield i, "assistant", token
            if not finished:
                continue
            reply = replies[i]
            reply.completion_ids += turns[row]
            reply.completion_mask += [1] * len(turns[row])
            reply.ended = token in ends
            words = turns[row][:-1] if reply.ended else turns[row]
            message, calls = _read_turn(tokenizer, tokenizer.decode(words))
            reply.messages.append(message)
            if reply.ended and tools and calls:
                reply.ended = False
                called[i] = calls
            else:
                own_tools.pop(i, None)
                yield i, "done", ""
        writing = []
        for i, calls in called.items():
            reply = replies[i]
            if tool_round == MAX_TOOL_ROUNDS:
                yield i, "done", ""
                continue
            mine = own_tools.pop(i, None) or for_one_reply(tools)
            results = [run_call(call, mine) for call in calls]
            messages = [{"role": "tool", "name": name, "content": result} for name, result in results]
            ids = _result_ids(tokenizer, messages, ends)
            left = max_new_tokens - sum(reply.completion_mask)
            reply.messages += messages
            reply.completion_ids += ids
            reply.completion_mask += [0] * len(ids)
            for message in messages:
                yield i, "tool", message["content"]
            if left > 0 and len(reply.prompt_ids) + len(reply.completion_ids) < context_length(model):
                writing.append(i)
                own_tools[i] = mine
            else:
                yield i, "done", ""
        if not writing:
            return


def _read_turn(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[dict, list[dict]]:
    """The message that a turn spells, and its calls. A turn with a call that the chat template could not write again
    (no JSON, no name, broken Unicode, nesting without end) stays the text that it is; its calls are answered too."""
    calls = [{"type": "function", "function": text}]
    try:
        message = read_reply(tokenizer, text)
        calls = message.get("tool_calls", [])
        if calls:
            tokenizer.apply_chat_template([{"role": "user", "content": "-"}, message])
        return message, calls
    except (TypeError, ValueError, RecursionError, TemplateError):
        return {"role": "assistant", "content": text}, calls


def _result_ids(tokenizer: PreTrainedTokenizerBase, results: list[dict], ends: set[int]) -> list[int]:
    """Ids between a turn that called tools, which ends with its end token, and the model's next word."""
    call = {"type": "function", "function": {"name": results[0]["name"], "arguments": {}}}
    before = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    prefix = tokenizer.apply_chat_template(before, return_dict=False)
    whole = tokenizer.apply_chat_template(before + results, add_generation_prompt=True, return_dict=False)
    if whole[: len(prefix)] != prefix:
        raise ValueError("the chat template rewrites a turn once a tool's result follows: it must keep prefixes")
    # the header's newline after the end token was not written by the model
    last = max((at for at, token in enumerate(prefix) if token in ends), default=len(prefix) - 1)
    return whole[last + 1 :]


def _prompts(model, tokenizer, conversations: Sequence[list[dict]], tools: Sequence[Callable] | None) -> list[Reply]:
    if not conversations:
        return []
    tools = list(tools) if tools else None
    keys = [repr(messages) for messages in conversations]  # many tries at one prompt: it is rendered once
    different = dict(zip(keys, conversations, strict=True))
    rows = tokenizer.apply_chat_template(list(different.values()), tools=tools, add_generation_prompt=True)
    ids = dict(zip(different, rows["input_ids"], strict=True))
    _rooms(model, [ids[key] for key in keys])
    return [Reply(prompt_ids=list(ids[key])) for key in keys]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"an empty prompt: begin a new document with {END_OF_TEXT}")
    return ids


def context_length(model: PreTrainedModel) -> int:
    """Positions that the model has; 2**31 where its config names none."""
    return getattr(model.config, "max_position_embeddings", None) or 2**31


def forget(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict],
    reserve: int,
    prompt: Callable[[list[dict]], list[int]] | None = None,
) -> tuple[list[dict], int]:
    """The messages without the oldest questions and what followed them, until `reserve` tokens (at most a quarter of
    the model's context) are left for a reply, and the number of messages dropped. The system message and the last
    question stay. `prompt` gives the ids of messages where they are not the chat template's."""
    prompt = prompt or partial(tokenizer.apply_chat_template, add_generation_prompt=True, return_dict=False)
    context, dropped = context_length(model), 0
    while len(prompt(messages)) > context - min(reserve, context // 4):
        first = 1 if messages[0]["role"] == "system" else 0
        following = [i for i in range(first + 1, len(messages)) if messages[i]["role"] == "user"]
        if not following:
            break
        dropped += following[0] - first
        messages = messages[:first] + messages[following[0] :]
    return messages, dropped


def _rooms(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Ids that fit after each prompt. Raises ValueError for a prompt that leaves no room."""
    context = context_length(model)
    for number, ids in enumerate(prompts):
        if len(ids) >= context:
            raise ValueError(f"prompt {number} is {len(ids)} tokens long and the model has {context} positions")
    return [context - len(ids) for ids in prompts]


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    named = getattr(model.generation_config, "eos_token_id", None)
    named = [] if named is None else [named] if isinstance(named, int) else named
    return end_tokens(tokenizer) | set(named)


def _uniforms(rows: int, length: int, seed: int) -> list[list[float]]:
    """A number in [0, 1) for every id that every row may write."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, length, generator=generator, dtype=torch.float64).tolist()
