"""The server: OpenAI's own client against it, the same text as the engine's, and whatever a stranger may send."""

import asyncio
import http.client
import json
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crawl2chat import serving
from crawl2chat.answering import Desk, Served
from crawl2chat.batching import Batcher
from crawl2chat.chat_request import Refused, read_json, read_request
from crawl2chat.decoding import Sampling
from crawl2chat.engine import Piece, complete, generate
from crawl2chat.evaluation import NEXT_SPEAKER
from crawl2chat.protocol import END_OF_TEXT, IM_END, dress, loss_mask
from crawl2chat.serving import ServeConfig, make_app, make_server
from crawl2chat.speaking import _Held, prompt_ids
from crawl2chat.token_probabilities import token_rows
from test_web_chat import chromium as chromium
from test_web_chat import opened, replies, settled
from test_web_chat import send as type_in
from tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.convert_tokens_to_ids(IM_END)
QUESTIONS = [f"{'hello ' * (i % 4)}What is {i} + 34?" for i in range(8)]
SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"properties": {"query": {}}}}}
CALL = {"function": {"name": "search", "arguments": "{}"}}
SCRIPT = {
    "find": "Wait. <SEARCH_START>Peru<SEARCH_END>",
    "Lima": "It is Lima.",
    "both": '<SEARCH_START>a<SEARCH_END><tool_call>{"name": "python", "arguments": {"code": "1\\n2"}}</tool_call>',
    "think": "<think>\nhm, 12\n</think>\nIt is 12.",
    "broken": 'Well <tool_call>{"name": </tool_call>',
    "unicode": "漢字 😀 <script>",
}


def search(query: str) -> str:
    """Search.

    Args:
        query: words
    """
    return "Lima"


class Around(torch.nn.Module):
    """A model whose answers are not quite its own."""

    def __init__(self):
        super().__init__()
        self.model, self.ids, self.steps = tiny_model(TOKENIZER), [], 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


class Parrot(Around):
    """Writes a script, a token at a time: after a turn that ends in a key, what stands there. One row at a time."""

    def __init__(self, script: dict[str, str]):
        super().__init__()
        self.script = {key: [*TOKENIZER(text)["input_ids"], END] for key, text in script.items()}

    def forward(self, input_ids, past_key_values=None, **options):
        output = self.model(input_ids, past_key_values=past_key_values, **options)
        fresh = past_key_values is None or past_key_values.get_seq_length() == input_ids.shape[1]
        self.ids = input_ids[0].tolist() if fresh else self.ids + input_ids[0].tolist()
        start = len(self.ids) - self.ids[::-1].index(2)  # after the last <|im_start|>
        written = self.ids[start:][len(TOKENIZER("assistant\n")["input_ids"]) :]
        before = TOKENIZER.decode(self.ids[: start - 1])
        key = max(self.script, key=before.rfind)
        token = self.script[key][len(written)] if len(written) < len(self.script[key]) else END
        output.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(token), output.logits.shape[-1]) * 50.0
        return output


class Slow(Around):
    """A model that takes its time and counts its steps; it never ends a turn."""

    def forward(self, **options):
        self.steps += 1
        time.sleep(0.02)
        output = self.model(**options)
        output.logits[..., END] = -100.0
        return output


def make_desk(folder=None, **options) -> Desk:
    """Checkpoints `sft` and `base` in a folder, `parrot` and `slow` in memory."""
    served = [Served(name, str(folder / name)) for name in ("sft", "base")] if folder else []
    desk = Desk([*served, Served("parrot", "-"), Served("slow", "-")], [search], {"max_tokens": 24}, **options)
    for name, model in (("parrot", Parrot(SCRIPT)), ("slow", Slow())):
        checkpoint = desk.checkpoints[name]
        checkpoint.loaded = model, TOKENIZER, Batcher(model, 1 if name == "parrot" else desk.places)
        checkpoint.described = {"id": name, "base": False, "parameters": 1, "context": 256}
    return desk


@contextmanager
def running(desk: Desk, **config):
    """The port of a server for these checkpoints."""
    server, listening = make_server(desk, ServeConfig(port=0, **config))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        desk.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    for name, eos_token in (("sft", IM_END), ("base", END_OF_TEXT)):
        tokenizer = tiny_tokenizer(eos_token)
        tokenizer.save_pretrained(root / name)
        tiny_model(tokenizer).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def desk(folder):
    return make_desk(folder)


@pytest.fixture(scope="module")
def port(desk):
    with running(desk) as port:
        yield port


@pytest.fixture(scope="module")
def client(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def ask(client, question, model: str = "sft", **options):
    messages = user(question) if isinstance(question, str) else question
    return client.chat.completions.create(model=model, messages=messages, **options)


def said(client, question, model: str = "sft", **options) -> str:
    return ask(client, question, model, **options).choices[0].message.content


def streamed(client, question, model: str = "sft", **options) -> list:
    return [chunk.choices[0] for chunk in ask(client, question, model, stream=True, **options) if chunk.choices]


def send(port: int, body, path: str = "/v1/chat/completions", method: str = "POST", **headers) -> tuple[int, dict]:
    """Status and JSON of a request as it stands; what is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    text = answer.read()
    return answer.status, json.loads(text) if text.startswith(b"{") else text


# the same text


def test_the_client_gets_the_text_that_the_engine_gives(client):
    whole = generate(tiny_model(TOKENIZER), TOKENIZER, [user(question) for question in QUESTIONS], max_new_tokens=24)
    for question, reply in zip(QUESTIONS, whole, strict=True):
        answer = ask(client, question)
        assert answer.choices[0].message.content == TOKENIZER.decode(reply.completion_ids).removesuffix(IM_END)
        assert answer.choices[0].finish_reason == ("stop" if reply.ended else "length")
        assert answer.usage.prompt_tokens == len(reply.prompt_ids)
        assert answer.usage.completion_tokens == len(reply.completion_ids)
        pieces = streamed(client, question)
        assert "".join(piece.delta.content or "" for piece in pieces) == answer.choices[0].message.content
        assert pieces[-1].finish_reason == answer.choices[0].finish_reason


def test_drawn_text_follows_the_seed_and_is_the_engines(client):
    options = {"temperature": 0.9, "top_p": 0.8, "seed": 5}
    reply = generate(tiny_model(TOKENIZER), TOKENIZER, [user("hi")], max_new_tokens=24, **options)[0]
    assert said(client, "hi", **options) == TOKENIZER.decode(reply.completion_ids).removesuffix(IM_END)
    assert said(client, "hi", **options | {"seed": 6}) != said(client, "hi", **options)
    assert len({said(client, "hi", temperature=1.5) for _ in range(4)}) > 1  # without a seed every reply is another


def test_several_choices_are_those_of_the_seeds_one_after_the_other(client):
    options = {"temperature": 0.9, "seed": 5, "logprobs": True}
    alone = [ask(client, "hi", **options | {"seed": 5 + i}) for i in range(3)]
    together = ask(client, "hi", n=3, **options)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    for choice, one in zip(together.choices, alone, strict=True):
        assert choice.message == one.choices[0].message
        tokens = [[entry.token for entry in each.logprobs.content] for each in (choice, one.choices[0])]
        assert tokens[0] == tokens[1]
    assert together.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert together.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    chunks = list(ask(client, "hi", n=3, stream=True, stream_options={"include_usage": True}, **options))
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[-1].usage == together.usage
    for number, one in enumerate(alone):
        pieces = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == number]
        assert "".join(piece.delta.content or "" for piece in pieces) == one.choices[0].message.content
        assert (pieces[0].delta.role, pieces[-1].finish_reason) == ("assistant", one.choices[0].finish_reason)


def test_replies_that_are_written_together_are_those_written_alone(client):
    alone = [said(client, question, max_tokens=8 + i) for i, question in enumerate(QUESTIONS)]
    together: list[str] = [""] * len(QUESTIONS)

    def one(i: int) -> None:
        together[i] = said(client, QUESTIONS[i], max_tokens=8 + i)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(QUESTIONS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_base_model_answers_as_a_page_goes_on(client, monkeypatch):
    tokenizer = tiny_tokenizer(END_OF_TEXT)
    prompt = f"{END_OF_TEXT}Human: What is 1?\n\nAssistant:"
    text = complete(tiny_model(tokenizer), tokenizer, [prompt], max_new_tokens=24)[0].text
    assert "\n" not in text.strip()
    answer = ask(client, "What is 1?", "base")
    assert answer.choices[0].message.content == text.strip()
    assert answer.usage.prompt_tokens == len(tokenizer(prompt)["input_ids"])


WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
SPELT = st.lists(st.one_of(WORDS, st.sampled_from(sorted(TOKENIZER.get_added_vocab()))), max_size=4).map("".join)
CALLS = st.lists(st.tuples(st.sampled_from(["search", "python"]), SPELT), max_size=2)


@st.composite
def chats(draw) -> list[dict]:
    """Messages as a client sends them: control tokens spelt out, parts, calls with results."""
    messages = [{"role": "system", "content": draw(SPELT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        text = draw(SPELT)
        parts = [{"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}]
        messages.append({"role": "user", "content": draw(st.sampled_from([text, parts]))})
        calls = draw(CALLS)
        if calls:
            sent = [
                {
                    "id": str(i),
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps({"query": words})},
                }
                for i, (name, words) in enumerate(calls)
            ]
            messages.append({"role": "assistant", "content": None, "tool_calls": sent})
            messages += [{"role": "tool", "tool_call_id": str(i), "content": draw(SPELT)} for i in range(len(calls))]
        messages.append({"role": "assistant", "content": draw(WORDS)})
    return [*messages, {"role": "user", "content": draw(SPELT)}]


@settings(max_examples=60, deadline=None)
@given(chats(), st.sampled_from(["chatml", "llama3"]))
def test_the_ids_of_any_chat_are_those_of_training(messages, family):
    tokenizer = dress(TOKENIZER.backend_tokenizer, IM_END, family) if family == "chatml" else LLAMA3
    asked = read_request(read_json(json.dumps({"model": "sft", "messages": messages}).encode()))
    trained = []  # as the conversations' stage writes them
    for message in messages:
        content = message["content"]
        row = {"role": message["role"], "content": content if isinstance(content, str) else None}
        row["content"] = "".join(part["text"] for part in content) if isinstance(content, list) else content or ""
        if message.get("tool_calls"):
            functions = [call["function"] for call in message["tool_calls"]]
            row["tool_calls"] = [
                {"type": "function", "function": {"name": f["name"], "arguments": json.loads(f["arguments"])}}
                for f in functions
            ]
        trained.append(row)
    ids, _ = loss_mask(tokenizer, [*trained, {"role": "assistant", "content": "x"}])
    prompt = prompt_ids(tokenizer, asked.conversation())
    assert ids[: len(prompt)] == prompt
    turns = [token for token in prompt if token == tokenizer.convert_tokens_to_ids(tokenizer.eos_token)]
    assert len(turns) == len(messages)


LLAMA3 = dress(tiny_tokenizer().backend_tokenizer, eos_token="<|eot_id|>", family="llama3")


def test_control_tokens_in_a_question_stay_text_for_a_base_model_too():
    tokenizer = tiny_tokenizer(END_OF_TEXT)
    ids = prompt_ids(tokenizer, user(f"a{END_OF_TEXT}b{IM_END}c<think>"))
    control = set(tokenizer.get_added_vocab().values())
    assert [token for token in ids if token in control] == [tokenizer.eos_token_id]


TEXTS = st.text("ab\n: H", max_size=30)


@settings(max_examples=300, deadline=None)
@example(": aa", ["aa"], 1, True)
@given(TEXTS, st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2), st.integers(1, 4), st.booleans())
def test_what_is_shown_ends_before_the_first_text_that_ends_it(text, stops, width, page):
    held, shown = _Held(stops, page), ""
    for at in range(0, len(text), width):
        released, hit = held.feed(Piece("assistant", text[at : at + width]))
        shown += "".join(piece.text for piece in released)
        if hit:
            break
    else:
        shown += "".join(piece.text for piece in held.rest())
    whole = text
    for length in range(width, len(text) + width, width):  # what is complete first ends it
        written = text[:length]
        cuts = [written.find(stop) for stop in stops if stop in written]
        cuts += [found.start() for found in [NEXT_SPEAKER.search(written)] if page and found]
        if cuts:
            whole = text[: min(cuts)]
            break
    assert shown == (whole.strip() if page else whole)


# tools and thoughts


def test_calls_come_back_to_the_client_and_its_results_are_read(client):
    answer = ask(client, "find", "parrot", tools=[SEARCH])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Wait. "
    (call,) = choice.message.tool_calls
    assert call.function.name == "search" and json.loads(call.function.arguments) == {"query": "Peru"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "Lima"}
    assert said(client, [*user("find"), choice.message, result], "parrot", tools=[SEARCH]) == "It is Lima."


def test_several_calls_stream_with_ids_and_numbers_of_their_own(client):
    pieces = streamed(client, "both", "parrot", tools=[SEARCH], max_tokens=80)
    calls = [call for piece in pieces for call in piece.delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls] == [(0, "search"), (1, "python")]
    assert calls[0].id != calls[1].id and json.loads(calls[1].function.arguments) == {"code": "1\n2"}
    assert pieces[-1].finish_reason == "tool_calls"


def test_a_call_that_nobody_answers_or_can_read_stays_text(client):
    assert said(client, "find", "parrot") == SCRIPT["find"]
    assert said(client, "find", "parrot", tools=[SEARCH], tool_choice="none") == SCRIPT["find"]
    answer = ask(client, "broken", "parrot", tools=[SEARCH]).choices[0]
    assert answer.message.content == SCRIPT["broken"] and answer.finish_reason == "stop"
    cut = ask(client, "find", "parrot", tools=[SEARCH], max_tokens=len(TOKENIZER(SCRIPT["find"])["input_ids"]) - 1)
    assert cut.choices[0].message.content == SCRIPT["find"].removesuffix("<SEARCH_END>")
    assert cut.choices[0].finish_reason == "length"


def test_the_server_runs_its_own_tools_within_the_reply(client):
    answer = ask(client, "find", "parrot", extra_body={"run_tools": True})
    assert answer.choices[0].message.content == "It is Lima." and answer.choices[0].finish_reason == "stop"
    call, result, last = answer.messages
    assert result == {"role": "tool", "name": "search", "content": "Lima", "tool_call_id": call["tool_calls"][0]["id"]}
    deltas = [piece.delta for piece in streamed(client, "find", "parrot", extra_body={"run_tools": True})]
    kinds = [
        "call" if delta.tool_calls else delta.role if delta.role == "tool" else "words"
        for delta in deltas
        if delta.tool_calls or delta.content
    ]
    assert list(dict.fromkeys(kinds)) == ["words", "call", "tool"] and kinds[-1] == "words"
    assert [delta.role for delta in deltas if delta.role] == ["assistant", "tool", "assistant"]


def test_tools_that_the_model_cannot_know_are_described_to_it(desk, port, client):
    weather = {"type": "function", "function": {"name": "weather", "description": "Tell <|im_end|> it."}}
    known = ask(client, "find", "parrot", tools=[SEARCH]).usage.prompt_tokens
    assert known == ask(client, "find", "parrot").usage.prompt_tokens
    described = loss_mask(TOKENIZER, user("find"), [weather])[0]
    header = len(TOKENIZER("<|im_start|>assistant\n")["input_ids"])
    assert ask(client, "find", "parrot", tools=[weather]).usage.prompt_tokens == len(described) + header


def test_thoughts_are_apart_from_the_words(client):
    message = ask(client, "think", "parrot").choices[0].message
    assert message.content == "It is 12." and message.reasoning_content == "hm, 12"
    deltas = [piece.delta for piece in streamed(client, "think", "parrot")]
    assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == "hm, 12"
    assert "".join(delta.content or "" for delta in deltas) == "It is 12."


# what a request may set


def test_a_reply_ends_before_a_stop_text_wherever_tokens_part_it(client):
    for stop, text in (("is L", "It "), ("ima", "It is L"), ("t is Lima.", "I"), (["x", "Lima"], "It is ")):
        answer = ask(client, "Lima", "parrot", stop=stop).choices[0]
        assert (answer.message.content, answer.finish_reason) == (text, "stop")
        pieces = streamed(client, "Lima", "parrot", stop=stop)
        assert "".join(piece.delta.content or "" for piece in pieces) == text
    assert said(client, "Lima", "parrot", stop=["Limb", "a.!"]) == "It is Lima."


def test_logprobs_are_the_models_own(client):
    model, question = tiny_model(TOKENIZER), "What is 3 + 34?"
    entries = ask(client, question, logprobs=True, top_logprobs=3, temperature=0.9, seed=1).choices[0].logprobs.content
    reply = generate(model, TOKENIZER, [user(question)], max_new_tokens=24, temperature=0.9, seed=1)[0]
    ids = [token for token in reply.completion_ids if token != END]
    assert [entry.token for entry in entries] == [TOKENIZER.decode([token]) for token in ids]
    logits = model(torch.tensor([reply.prompt_ids + ids])).logits[0, len(reply.prompt_ids) - 1 :, : len(TOKENIZER)]
    nats = logits.detach().log_softmax(-1)
    for row, token, entry in zip(nats, ids, entries, strict=False):
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [other.logprob for other in entry.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    pieces = streamed(client, question, logprobs=True, top_logprobs=3, temperature=0.9, seed=1)
    parts = [entry for piece in pieces if piece.logprobs for entry in piece.logprobs.content]
    assert [part.token for part in parts] == [entry.token for entry in entries]
    assert ask(client, question).choices[0].logprobs is None


def test_unicode_is_streamed_whole(client):
    pieces = [piece.delta.content or "" for piece in streamed(client, "unicode", "parrot", max_tokens=60)]
    assert "".join(pieces) == SCRIPT["unicode"] and all("\ufffd" not in piece for piece in pieces)


def test_usage_comes_last_where_it_is_asked_for(client):
    chunks = list(ask(client, "Lima", "parrot", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0
    assert chunks[-2].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "change, param",
    [
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_tokens": 10**40}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1e300}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"n": 2, "run_tools": True}, None),
        ({"n": True}, "n"),
        ({"stop": ["a"] * 5}, None),
        ({"stop": ""}, "stop.0"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "x"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"top_logprobs": 3}, None),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"model": None}, "model"),
        ({"model": ["sft"]}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages.0"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages.0"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[1"}}]}]},
         "messages.0.tool_calls.0.function.arguments"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": {}}}]}]},
         "messages.0.tool_calls.0.function.arguments"),
        ({"prompt": "hi"}, "prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_its_field(port, change, param):
    status, answer = send(port, {"model": "sft", "messages": user("hi"), "max_tokens": 2} | change)
    assert status == 400 and answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": "\\ud800"}', b"[" * 100_000, b'{"a":' * 3000,
     b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"temperature": NaN}',
     b'{"model": "sft", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
     b'{"model": "sft", "messages": [{"role": "user", "content": "a"}], "temperature": Infinity}',
     b'{"seed": ' + b"9" * 6000 + b"}"],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(port, body):
    for path in ("/v1/chat/completions", "/api/tokens"):
        status, answer = send(port, body, path)
        assert status == 400 and answer["error"]["message"]


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)
FIELDS = "messages model stop stream temperature tools tool_choice top_p n seed logprobs max_tokens run_tools".split()


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), st.lists(VALUES, max_size=2), VALUES)
def test_any_body_is_a_request_or_refused(fields, messages, tool):
    base = {"model": "sft", "messages": [{"role": "user", "content": "x"}, *messages], "tools": [tool]}
    for body in (base | fields, {**base, "messages": user("x")}):
        try:
            asked = read_request(read_json(json.dumps(body).encode()))
            prompt_ids(TOKENIZER, asked.conversation(), asked.offered)
        except Refused as error:
            assert error.status == 400


def test_what_does_not_fit_the_context_is_refused_with_both_numbers(client):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "hello " * 300)
    assert refused.value.code == "context_length_exceeded"
    assert "256" in refused.value.message and any(int(n) > 256 for n in refused.value.message.split() if n.isdigit())
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "hello " * 300, stream=True)  # a status, not a broken stream
    with pytest.raises(openai.BadRequestError, match="300.*256"):
        ask(client, "hi", max_tokens=300)
    assert ask(client, "hello " * 60, "slow", max_tokens=256).usage.total_tokens == 256  # clipped to the room


def test_an_unknown_model_is_not_found(client, port):
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, "hi", "gpt-6")
    assert refused.value.code == "model_not_found"
    assert send(port, {"model": "gpt-6", "messages": user("hi")}, "/api/tokens")[0] == 404
    assert send(port, b"", "/v1/engines", "GET")[0] == 404 and send(port, b"", "/v1/models")[0] == 405


def test_a_checkpoint_that_cannot_be_loaded_is_told_and_the_others_answer(tmp_path, capsys):
    desk = make_desk()
    desk.checkpoints |= Desk([Served("gone", str(tmp_path / "gone"))]).checkpoints
    with running(desk) as port:
        assert send(port, {"model": "gone", "messages": user("hi")})[0] == 503
        assert send(port, {"model": "parrot", "messages": user("Lima")})[0] == 200
        assert send(port, b"", "/api/info", "GET")[1]["models"][-1]["parameters"] is None
    assert "no such folder" in capsys.readouterr().out


def test_checkpoints_that_are_asked_for_at_once_are_loaded_whole(tmp_path):
    model = tiny_model(TOKENIZER)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    for name in "abc":
        model.save_pretrained(tmp_path / name)
        TOKENIZER.save_pretrained(tmp_path / name)
    for _ in range(3):
        desk = Desk([Served(name, str(tmp_path / name)) for name in "abc"])
        heads: list[torch.Tensor] = []

        def load(checkpoint, heads=heads) -> None:
            heads.append(checkpoint.load()[0].lm_head.weight)

        threads = [threading.Thread(target=load, args=(checkpoint,)) for checkpoint in desk.checkpoints.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(heads) == 3 and all(torch.equal(head, model.lm_head.weight) for head in heads)


# what the page asks for


def test_the_models_are_listed_and_described(client, port):
    assert [model.id for model in client.models.list()] == ["sft", "base", "parrot", "slow"]
    assert client.models.retrieve("base").id == "base"
    status, info = send(port, b"", "/api/info", "GET")
    assert [model["base"] for model in info["models"]] == [False, True, False, False]
    size = sum(parameter.numel() for parameter in tiny_model(TOKENIZER).parameters())
    assert info["models"][0] == {"id": "sft", "base": False, "parameters": size, "context": 256}
    assert info["tools"] == ["search"] and info["defaults"]["max_tokens"] == 24


def test_the_token_view_holds_trainings_ids_mask_and_the_models_probabilities(port):
    messages = [*user("What is 1?"), {"role": "assistant", "content": "I am."}, *user("And?")]
    status, answer = send(port, {"model": "sft", "messages": messages}, "/api/tokens")
    rows = answer["tokens"]
    ids, mask = loss_mask(TOKENIZER, messages)
    assert [row["id"] for row in rows] == ids and [row["written"] for row in rows] == [bool(bears) for bears in mask]
    shares = tiny_model(TOKENIZER)(torch.tensor([ids])).logits[0, :, : len(TOKENIZER)].softmax(-1)
    expected = [shares[at - 1, token].item() for at, token in enumerate(ids) if at]
    assert [row["probability"] for row in rows[1:]] == pytest.approx(expected, abs=1e-5)
    assert rows[0]["probability"] is None and all(len(row["alternatives"]) == 5 for row in rows[1:])
    roles = [row["role"] for row in rows]
    assert roles == sorted(roles[: roles.index("assistant")]) + roles[roles.index("assistant") :]
    assert all(row["role"] == "assistant" for row in rows if row["written"])
    long = send(port, {"model": "sft", "messages": user("hello " * 300)}, "/api/tokens")
    assert long[0] == 400 and "256" in long[1]["error"]["message"]


def test_a_base_models_token_view_is_of_the_page_it_reads():
    tokenizer = tiny_tokenizer(END_OF_TEXT)
    messages = [*user("hi"), {"role": "assistant", "content": "ho"}]
    rows = token_rows(tiny_model(tokenizer), tokenizer, messages)
    assert "".join(row["text"] for row in rows) == f"{END_OF_TEXT}Human: hi\n\nAssistant: ho\n\n"
    assert "".join(row["text"] for row in rows if row["written"]) == "Assistant: ho\n\n"


def test_the_page_is_served_with_headers_that_let_no_other_script_run(port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'; script-src 'self'" in answer.headers["Content-Security-Policy"]
    assert b"<script" in answer.read()
    assert send(port, b"", "/..%2fserving.py", "GET")[0] == 404


def test_browser_the_page_talks_to_this_server(port, chromium):
    with opened(chromium, f"http://127.0.0.1:{port}/") as tab:
        tab.locator("#models button", has_text="parrot").click()
        tab.locator("#models button", has_text="sft").click()
        type_in(tab, "find")
        settled(tab)
        said_by_sft, found, _ = replies(tab)  # the page begins with the last checkpoint alone
        assert "Peru" in found and "Lima" in found and found.endswith("It is Lima.") and said_by_sft


# bounds


def test_a_full_queue_is_told_to_come_back(desk):
    desk = make_desk(at_once=1, queue=1)
    with running(desk) as port:
        body = {"model": "slow", "messages": user("hi"), "max_tokens": 40}
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(send(port, body)[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait(lambda: desk.taken == 2)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0
        assert json.loads(answer.read())["error"]["code"] == "overloaded"
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        wait(lambda: desk.taken == 0)
        assert send(port, body | {"n": 3})[0] == 503  # there are two places
        wait(lambda: desk.taken == 0)


def wait(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def head(port: int, length: int) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_reply(stream):
    desk = make_desk()
    slow = desk.checkpoints["slow"].loaded[0]
    with running(desk) as port:
        body = json.dumps({"model": "slow", "messages": user("hi"), "max_tokens": 200, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            )
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait(lambda: slow.steps > 3)
        wait(lambda: desk.taken == 0)
        steps = slow.steps
        time.sleep(0.2)
        assert slow.steps == steps < 150


def test_a_reply_that_takes_too_long_is_ended():
    desk = make_desk(time_limit=0.5)
    with running(desk) as port:
        body = {"model": "slow", "messages": user("hi"), "max_tokens": 200}
        status, answer = send(port, body)
        assert status == 504 and "0.5 s" in answer["error"]["message"]
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="longer than"):
            streamed(client, "hi", "slow", max_tokens=200)
        wait(lambda: desk.taken == 0)


def test_a_body_too_large_is_refused_and_its_sender_gets_the_answer(port):
    status, answer = send(port, b'{"model": "' + b"x" * (serving.LARGEST + 1) + b'"}')
    assert status == 413 and "larger" in answer["error"]["message"]
    for declared in (serving.DRAINED + 1, 10**19):  # nothing of it is waited for
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head(port, declared) + b"{")
            connection.settimeout(5)
            assert b"413" in connection.recv(100)
    assert send(port, b"{}", **{"Content-Type": "text/plain"})[0] == 415


def test_a_head_or_a_body_that_trickles_is_given_up(monkeypatch):
    monkeypatch.setattr(serving, "PATIENCE", 0.4)
    with running(make_desk()) as port:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: loc")
            connection.settimeout(10)
            assert connection.recv(100) == b""
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            )
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            connection.settimeout(10)
            assert b"408" in connection.recv(100)
        assert send(port, {"model": "parrot", "messages": user("Lima")})[0] == 200


# who may ask


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "evil.example:8000"}, {"Host": "localhost.evil.example"}, {"Host": "10.0.0.7"},
     {"Host": ""}, {"Host": "localhost@evil"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
     {"Origin": "http://127.0.0.1:1"}],
)  # fmt: skip
def test_a_page_of_another_site_cannot_ask(port, headers):
    for path, method in (("/v1/chat/completions", "POST"), ("/api/info", "GET"), ("/", "GET")):
        status, answer = send(port, {"model": "parrot", "messages": user("Lima")}, path, method, **headers)
        assert status == 403 and answer["error"]["message"]


def test_what_another_sites_page_embeds_is_refused_and_its_link_followed(port):
    for site in ("cross-site", "same-site"):
        assert send(port, b"", "/api/info", "GET", **{"Sec-Fetch-Site": site})[0] == 403
        assert send(port, b"", "/", "GET", **{"Sec-Fetch-Site": site})[0] == 200


def test_this_machines_own_page_may_ask(port):
    body = {"model": "parrot", "messages": user("Lima")}
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{port}"
        assert send(port, body, Host=host, Origin=f"http://{host}")[0] == 200


def guarded(listening: str, secret: str, **headers) -> int:
    """The status of /v1/models in a server that listens at an address."""
    found = []

    async def send(message: dict) -> None:
        found.append(message.get("status"))

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": raw, "query_string": b""}
    work = make_app(make_desk(), listening, secret)({**scope, "root_path": ""}, receive, send)
    with ThreadPoolExecutor(1) as pool:  # a browser's fixture has a loop in this thread
        pool.submit(asyncio.run, work).result()
    return found[0]


def test_a_server_for_others_is_asked_by_address_or_its_name_and_wants_its_key():
    assert guarded("0.0.0.0", "", host="10.0.0.7:8000") == 200
    assert guarded("0.0.0.0", "", host=socket.gethostname()) == 200
    assert guarded("0.0.0.0", "", host="evil.example") == 403
    assert guarded("0.0.0.0", "key", host="10.0.0.7") == 401
    assert guarded("0.0.0.0", "key", host="10.0.0.7", authorization="Bearer kex") == 401
    assert guarded("0.0.0.0", "key", host="10.0.0.7", authorization="Bearer key") == 200


def test_a_key_comes_from_the_environment_alone(monkeypatch, capsys):
    monkeypatch.delenv("CHAT_KEY", raising=False)
    with pytest.raises(SystemExit, match="CHAT_KEY is not set"):
        make_server(make_desk(), ServeConfig(port=0, api_key_variable="CHAT_KEY"))
    monkeypatch.setenv("CHAT_KEY", "canary-4711")
    with running(make_desk(), api_key_variable="CHAT_KEY") as port:
        assert send(port, b"", "/v1/models", "GET")[0] == 401 and send(port, b"", "/", "GET")[0] == 200
        assert send(port, b"", "/v1/models", "GET", Authorization="Bearer canary-4711")[0] == 200
    assert "canary" not in "".join(capsys.readouterr())


def test_an_address_that_is_taken_is_one_line_and_one_for_others_is_warned_of(port, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=f"127.0.0.1:{port} cannot be listened at"):
        make_server(make_desk(), ServeConfig(port=port))
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    serving.serve(make_desk(), ServeConfig(port=0, host="0.0.0.0"))
    assert "warning: 0.0.0.0 is not this machine alone" in capsys.readouterr().out
    serving.serve(make_desk(), ServeConfig(port=0))
    assert "warning" not in capsys.readouterr().out


# rows that join


def test_rows_join_and_leave_a_batch_without_changing_each_other():
    model = tiny_model(TOKENIZER)
    batcher = Batcher(tiny_model(TOKENIZER), 3)
    prompts = [TOKENIZER(f"{'hello ' * (i % 5)}{i}")["input_ids"] for i in range(9)]
    found: dict[int, list[int]] = {}

    def one(i: int) -> None:
        decoder = batcher.decoder(threading.Event())
        sampling, numbers = Sampling(i % 2 * 0.8), [math.modf(0.37 * (i + n))[0] for n in range(20)]
        events = decoder(model, [prompts[i]], [5 + i], {END}, len(TOKENIZER), sampling, [numbers], 1)
        found[i] = [token for _, token, _ in events]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    from crawl2chat.decoding import decode

    for i in range(9):
        sampling, numbers = Sampling(i % 2 * 0.8), [math.modf(0.37 * (i + n))[0] for n in range(20)]
        alone = decode(model, [prompts[i]], [5 + i], {END}, len(TOKENIZER), sampling, [numbers], 1)
        assert found[i] == [token for _, token, _ in alone]
