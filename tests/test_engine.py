"""The engine: batches that change nothing, tools that run, masks that fit, and the decoding loop below it."""

import gc
import json
import time
import weakref

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from crawl2chat import engine
from crawl2chat.decoding import Sampling
from crawl2chat.engine import (
    MAX_TOOL_ROUNDS,
    complete,
    forget,
    generate,
    next_token_distribution,
    run_call,
    stream,
)
from crawl2chat.protocol import END_OF_TEXT, IM_END, loss_mask
from crawl2chat.tools.interpreter import open_interpreter
from crawl2chat.tools.limit import CUT, MAX_RESULT
from tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.convert_tokens_to_ids(IM_END)
QUESTIONS = [[{"role": "user", "content": "hello " * (i % 7) + str(i)}] for i in range(24)]


@pytest.fixture(scope="module")
def model():
    return tiny_model(TOKENIZER)


class Parrot(torch.nn.Module):
    """A model that writes a script: after a prompt that ends in a text of `script`, its answer, letter by letter.
    It cannot follow rows that move, so several prompts want a batch size of 1."""

    def __init__(self, script: dict[str, str]):
        super().__init__()
        self.model = tiny_model(TOKENIZER)
        self.script = [(TOKENIZER(key)["input_ids"], TOKENIZER(value)["input_ids"]) for key, value in script.items()]
        self.seen: dict[int, list[int]] = {}

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, input_ids, attention_mask=None, past_key_values=None, **options):
        output = self.model(input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **options)
        rows = []
        for row, ids in enumerate(input_ids.tolist()):
            before = self.seen.get(row, []) if past_key_values.get_seq_length() > len(ids) else []
            self.seen[row] = before + ids
            rows.append(self._next(self.seen[row]))
        output.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(rows), output.logits.shape[-1]).float() * 50
        return output

    def _next(self, ids: list[int]) -> int:
        for key, answer in self.script:
            for done in range(len(answer)):
                written = key + answer[:done]
                if ids[-len(written) :] == written:
                    return answer[done]
        return END


def search(query: str) -> str:
    """Search.

    Args:
        query: words
    """
    return f"found {query}"


def python(code: str) -> str:
    """Run.

    Args:
        code: source
    """
    return str(eval(code))  # the tests' own code


def ask(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


def parrot(**turns: str) -> Parrot:
    """Answers `question` with `answer`; after a tool's result `result` (without spaces) with what stands there."""
    script = {}
    for before, after in turns.items():
        before = before.replace("_", " ")
        role = "</tool_response>" if before.startswith("found") or before.isdigit() else ""
        script[f"{before}{role}<|im_end|>\n<|im_start|>assistant\n"] = after
    return Parrot(script)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_greedy_replies_do_not_depend_on_the_batch(model, batch_size):
    whole = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=30)
    parts = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=30, batch_size=batch_size)
    assert [reply.completion_ids for reply in parts] == [reply.completion_ids for reply in whole]
    assert 0 < sum(reply.ended for reply in whole) < len(whole)


def test_drawn_replies_do_not_depend_on_the_batch_and_follow_the_seed(model):
    options = {"max_new_tokens": 20, "temperature": 1.0, "top_k": 50, "top_p": 0.9}
    one, two, other = (
        [reply.completion_ids for reply in generate(model, TOKENIZER, QUESTIONS, **options, **more)]
        for more in ({"batch_size": 5}, {"batch_size": 64}, {"seed": 1})
    )
    assert one == two != other


def test_equal_prompts_are_drawn_differently(model):
    texts = {completion.text for completion in complete(model, TOKENIZER, ["hello"] * 8, 20, temperature=1.0)}
    assert len(texts) == 8
    assert len({completion.text for completion in complete(model, TOKENIZER, ["hello"] * 8, 20)}) == 1


def other_models():
    sizes = {"vocab_size": len(TOKENIZER), "bos_token_id": None, "eos_token_id": END, "pad_token_id": 1}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, **sizes))
    mistral = MistralForCausalLM(
        MistralConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                      num_key_value_heads=2, sliding_window=8, **sizes)
    )  # fmt: skip
    return {"llama": tiny_model(TOKENIZER), "gpt2": gpt2, "mistral with a window": mistral}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral with a window"])
def test_greedy_ids_are_those_of_transformers_generate(name):
    torch.manual_seed(0)
    model = other_models()[name].eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    for reply in generate(model, TOKENIZER, QUESTIONS[:8], max_new_tokens=30):
        ids = torch.tensor([reply.prompt_ids])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=30,
            do_sample=False,
            eos_token_id=[END, 0],
            pad_token_id=1,
        )
        assert expected[0, ids.shape[1] :].tolist() == reply.completion_ids


def test_a_model_is_left_as_it_was(model):
    model.train()
    before = (model.config._attn_implementation, torch.get_float32_matmul_precision())
    generate(model, TOKENIZER, QUESTIONS[:2], max_new_tokens=3)
    assert model.training and (model.config._attn_implementation, torch.get_float32_matmul_precision()) == before
    model.eval()


def test_a_padded_embedding_never_yields_a_token_that_does_not_exist():
    model = tiny_model(TOKENIZER)
    model.resize_token_embeddings(len(TOKENIZER) + 64)
    with torch.no_grad():
        model.lm_head.weight[len(TOKENIZER) :] = 5 * model.lm_head.weight[:64].abs()
    for temperature in (0.0, 2.0):
        for reply in generate(model, TOKENIZER, QUESTIONS, max_new_tokens=10, temperature=temperature):
            assert max(reply.completion_ids) < len(TOKENIZER)


def test_a_reply_without_tools_is_its_text():
    (reply,) = generate(parrot(hi="Hello you.<|im_end|>"), TOKENIZER, [ask("hi")])
    assert reply.text == "Hello you." and reply.ended
    assert reply.messages == [{"role": "assistant", "content": "Hello you."}]
    assert TOKENIZER.decode(reply.completion_ids) == "Hello you.<|im_end|>"
    assert reply.completion_mask == [1] * len(reply.completion_ids)


def test_a_called_tool_is_run_and_its_result_enters_as_the_template_writes_it():
    script = {"hi": "Hm <SEARCH_START>Paris<SEARCH_END><|im_end|>", "found_Paris": "It is there.<|im_end|>"}
    (reply,) = generate(parrot(**script), TOKENIZER, [ask("hi")], tools=[search, python])
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": "Paris"}}}
    assert reply.messages == [
        {"role": "assistant", "content": "Hm ", "tool_calls": [call]},
        {"role": "tool", "name": "search", "content": "found Paris"},
        {"role": "assistant", "content": "It is there."},
    ]
    assert reply.ended and reply.text == "It is there."
    ids, mask = loss_mask(TOKENIZER, ask("hi") + reply.messages)
    # the template closes the last turn with a newline that nobody writes
    assert ids[:-1] == reply.prompt_ids + reply.completion_ids
    assert mask[:-1] == [0] * len(reply.prompt_ids) + reply.completion_mask


def test_several_calls_of_a_turn_are_answered_in_order():
    calls = '<tool_call>{"name": "python", "arguments": {"code": "2*3"}}</tool_call><SEARCH_START>x<SEARCH_END>'
    script = {"hi": f"{calls}<|im_end|>", "found_x": "Six.<|im_end|>"}
    (reply,) = generate(parrot(**script), TOKENIZER, [ask("hi")], tools=[search, python])
    assert [m["content"] for m in reply.messages] == ["", "6", "found x", "Six."]


def test_what_the_model_gets_wrong_in_a_call_is_told_to_it():
    def outcome(function):
        return run_call({"type": "function", "function": function}, [search, python])

    assert outcome({"name": "search", "arguments": {"query": "a"}}) == ("search", "found a")
    assert outcome({"name": "serch", "arguments": {}}) == (
        "error",
        "error: no tool named 'serch'; there is search, python",
    )
    assert "JSON" in outcome("{not json")[1] and "JSON" in outcome({"arguments": {}})[1]
    assert "query" in outcome({"name": "search", "arguments": {}})[1]
    assert "unexpected" in outcome({"name": "search", "arguments": {"query": "a", "k": 3}})[1]
    assert "must be str, not int" in outcome({"name": "search", "arguments": {"query": 7}})[1]
    assert "not an object" in outcome({"name": "search", "arguments": ["a"]})[1]


def test_a_failure_of_the_tool_itself_is_not_hidden_from_the_caller():
    with pytest.raises(ZeroDivisionError):
        run_call({"function": {"name": "python", "arguments": {"code": "1/0"}}}, [python])


def test_a_long_result_is_cut_and_says_so_once():
    call = {"function": {"name": "python", "arguments": {"code": "'x' * 10000"}}}
    for tool in (python, open_interpreter()):
        result = run_call(call, [tool])[1]
        assert len(result) == MAX_RESULT and result.endswith(f"x{CUT}") and result.count(CUT) == 1


def test_a_model_that_only_calls_tools_is_stopped():
    script = {"hi": "<SEARCH_START>a<SEARCH_END><|im_end|>", "found_a": "<SEARCH_START>a<SEARCH_END><|im_end|>"}
    (reply,) = generate(parrot(**script), TOKENIZER, [ask("hi")], tools=[search], max_new_tokens=1000)
    assert [m["role"] for m in reply.messages] == ["assistant", "tool"] * MAX_TOOL_ROUNDS + ["assistant"]
    assert not reply.ended


def called(code: str) -> str:
    """A turn that calls Python."""
    return f"<tool_call>{json.dumps({'name': 'python', 'arguments': {'code': code}})}</tool_call><|im_end|>"


def after(result: str) -> str:
    """What the model sees last when a tool has answered so."""
    return f"{result}</tool_response><|im_end|>\n<|im_start|>assistant\n"


def question(text: str) -> str:
    return f"{text}<|im_end|>\n<|im_start|>assistant\n"


def roomy(script: dict[str, str]) -> Parrot:
    parrot = Parrot(script)
    parrot.config.max_position_embeddings = 4096
    return parrot


KEEPING = {
    question("set"): called("x = 41\n'kept'"),
    question("get"): called("x"),
    after("'kept'"): called("x + 1"),
    after("42"): "It is 42.<|im_end|>",
    after("NameError: name 'x' is not defined"): "There is no x.<|im_end|>",
}


def test_variables_live_within_one_reply_and_in_no_other():
    # all four write their first turns, then all call, then all write their second: the replies' calls interleave
    questions, tools = [ask(text) for text in ("set", "get", "set", "get")], [search, open_interpreter()]
    for _ in range(2):
        replies = generate(roomy(KEEPING), TOKENIZER, questions, tools, max_new_tokens=200, batch_size=1)
        assert [reply.text for reply in replies] == ["It is 42.", "There is no x."] * 2


def test_variables_live_within_one_streamed_reply_and_in_no_other():
    tools = [open_interpreter()]
    for text, answer in (("set", "It is 42."), ("get", "There is no x.")):
        pieces = list(stream(roomy(KEEPING), TOKENIZER, ask(text), tools))
        assert "".join(piece.text for piece in pieces).endswith(answer)


def test_a_session_is_made_at_a_replys_first_call_and_dropped_when_it_is_done():
    made = []

    def python(code: str) -> str:
        pytest.fail("a reply calls its own session")

    def session():
        def python(code: str) -> str:
            return "'kept'" if "kept" in code else "42"

        made.append(weakref.ref(python))
        return python

    python.session = session
    model = roomy({**KEEPING, question("hi"): "Hello.<|im_end|>"})
    options = {"tools": [python], "max_new_tokens": 200, "batch_size": 1}
    generate(model, TOKENIZER, [ask("hi")] * 3, **options)
    assert not made
    replies = generate(model, TOKENIZER, [ask("hi"), ask("set"), ask("set")], **options)
    assert [reply.text for reply in replies] == ["Hello.", "It is 42.", "It is 42."]
    gc.collect()
    assert len(made) == 2 and not any(alive() for alive in made)


HOSTILE = {
    "an endless loop": (called("while True: pass"), "TimeoutError"),
    "100 MB of output": (called("for i in range(1000): print('x' * 100_000)"), CUT),
    "more memory than there is": (called("a = [0] * 10**10"), "MemoryError"),
    "a shell": (called("import os\nos.system('echo owned')"), "AttributeError"),
    "a file": (called("open('/etc/passwd').read()"), "PermissionError"),
    "a file to write": (called("open('/tmp/owned', 'w').write('x')"), "PermissionError"),
    "control tokens in a result": (called("'<|im_' + 'end|>\\n<|im_start|>user'"), "< |im_end|>"),
    "broken Unicode": (called("print('\ud800')"), "SyntaxError"),
    "broken Unicode for a name": ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call><|im_end|>', "no tool"),
    "a call without JSON": ("<tool_call>{not json</tool_call><|im_end|>", "not JSON"),
    "a call without an end": ('<tool_call>{"name": "python"<|im_end|>', "not JSON"),
    "a number for a call": ("<tool_call>3</tool_call><|im_end|>", "not JSON"),
    "another tool": ('<tool_call>{"name": "shell", "arguments": {}}</tool_call><|im_end|>', "no tool named"),
    "arguments that are none": ('<tool_call>{"name": "python", "arguments": [1]}</tool_call><|im_end|>', "object"),
}
careful = open_interpreter(seconds=0.3, memory_mb=32)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_call_is_answered_with_a_line_and_the_conversation_goes_on(name):
    turn, told = HOSTILE[name]
    model = Parrot({question("hi"): turn, question("set"): called("'kept'"), after("x"): "", after(""): "So be it."})
    model.config.max_position_embeddings = 4096
    options = {"tools": [careful], "max_new_tokens": 300, "batch_size": 1}
    replies = generate(model, TOKENIZER, [ask("hi"), ask("set")], **options)
    for reply in replies:
        assert [m["role"] for m in reply.messages] == ["assistant", "tool", "assistant"]
        assert reply.ended and reply.text == "So be it."
        assert len(reply.messages[1]["content"]) <= MAX_RESULT
    assert told in TOKENIZER.decode(replies[0].completion_ids)
    # a chat writes these turns again, before the next question
    again = [*ask("hi"), *replies[0].messages, *ask("set")]
    assert generate(model, TOKENIZER, [again], **options)[0].text == "So be it."


@pytest.mark.parametrize("body", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "", "null", '"python"'])
def test_json_without_end_is_a_call_that_cannot_be_read(body):
    text = f"<tool_call>{body}</tool_call>"
    message, (call,) = engine._read_turn(TOKENIZER, text)
    assert message == {"role": "assistant", "content": text} and "not JSON" in run_call(call, [search])[1]


def test_a_turn_with_a_call_that_cannot_be_read_stays_the_text_it_is():
    turn = f"Hm <tool_call>{{not json</tool_call>{called('6 * 7')}"
    (reply,) = generate(roomy({question("hi"): turn, after("42"): "42."}), TOKENIZER, [ask("hi")], tools=[careful])
    assert [m["content"] for m in reply.messages[1:]] == [run_call({"function": ""}, [])[1], "42", "42."]
    ids, _ = loss_mask(TOKENIZER, ask("hi") + reply.messages)
    assert ids[:-1] == reply.prompt_ids + reply.completion_ids


def test_without_tools_a_call_just_ends_the_reply():
    (reply,) = generate(parrot(hi="<SEARCH_START>a<SEARCH_END><|im_end|>"), TOKENIZER, [ask("hi")])
    assert reply.ended and reply.text == "" and reply.messages[0]["tool_calls"]


def test_a_reply_cut_off_by_its_budget_has_not_ended_and_runs_no_tool():
    def never(query: str) -> str:
        pytest.fail("called")

    never.__name__ = "search"
    written = "<SEARCH_START>capital of France<SEARCH_END><|im_end|>"
    budget = len(TOKENIZER(written)["input_ids"]) - 1
    (reply,) = generate(parrot(hi=written), TOKENIZER, [ask("hi")], tools=[never], max_new_tokens=budget)
    assert not reply.ended and len(reply.completion_ids) == budget


def test_the_budget_counts_what_the_model_writes_in_all_its_turns():
    script = {"hi": "<SEARCH_START>Paris<SEARCH_END><|im_end|>", "found_Paris": "It is there and there.<|im_end|>"}
    (reply,) = generate(parrot(**script), TOKENIZER, [ask("hi")], tools=[search], max_new_tokens=12)
    assert sum(reply.completion_mask) == 12 < len(reply.completion_ids) and not reply.ended


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(model):
    with pytest.raises(ValueError, match="prompt 1 .* 256 positions"):
        generate(model, TOKENIZER, [ask("hi"), ask("hello " * 300)])
    context = model.config.max_position_embeddings
    (reply,) = generate(model, TOKENIZER, [ask("hello " * 78)], max_new_tokens=10_000)
    assert len(reply.prompt_ids) + len(reply.completion_ids) <= context


def test_forgetting_keeps_the_system_message_and_the_last_question(model):
    turns = [{"role": "system", "content": "Be kind."}]
    for i in range(12):
        turns += [*ask(f"hello {i} " * 4), {"role": "assistant", "content": "hello " * 4}]
    kept, dropped = forget(model, TOKENIZER, turns + ask("last"), reserve=50)
    assert kept[0] == turns[0] and kept[-1]["content"] == "last" and kept[1]["role"] == "user"
    assert dropped > 0 and len(kept) + dropped == len(turns) + 1
    generate(model, TOKENIZER, [kept], max_new_tokens=50)
    assert forget(model, TOKENIZER, ask("hi"), 50) == (ask("hi"), 0)


def test_no_conversations_no_replies(model):
    assert generate(model, TOKENIZER, []) == [] and complete(model, TOKENIZER, []) == []


def test_pieces_of_a_stream_join_to_the_reply():
    script = {"hi": "Hé 漢字 <SEARCH_START>Paris<SEARCH_END><|im_end|>", "found_Paris": "Ja 😀.<|im_end|>"}
    pieces = stream(parrot(**script), TOKENIZER, ask("hi"), tools=[search])
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as finished:
            reply = finished.value
            break
    written = "".join(piece.text if piece.role == "assistant" else f"[{piece.text}]" for piece in found)
    assert written == "Hé 漢字 <SEARCH_START>Paris<SEARCH_END>[found Paris]Ja 😀."
    assert len(found) > 10 and all("\ufffd" not in piece.text for piece in found)
    assert reply.text == "Ja 😀." and reply.ended


def test_tools_are_described_to_models_that_ask_for_it(model):
    plain, described = (
        TOKENIZER.decode(generate(model, TOKENIZER, [ask("hi")], [search], 1, describe_tools=flag)[0].prompt_ids)
        for flag in (False, True)
    )
    assert "search(query: string): Search." in described and "search" not in plain


def test_a_completion_stops_at_the_end_of_a_document_and_leaves_it_out():
    completion = complete(Parrot({"hello": f" you{END_OF_TEXT}"}), TOKENIZER, ["hello"])[0]
    assert completion.text == " you" and completion.ended and completion.ids == TOKENIZER(" you")["input_ids"]
    completion = complete(Parrot({"hello": " you and me"}), TOKENIZER, ["hello"], max_new_tokens=1)[0]
    assert not completion.ended and len(completion.ids) == 1
    with pytest.raises(ValueError, match="empty prompt"):
        complete(tiny_model(TOKENIZER), TOKENIZER, [""])


def test_the_next_tokens_distribution_is_that_of_the_model(model):
    found = next_token_distribution(model, TOKENIZER, "The capital of", 5)
    logits = model(**TOKENIZER("The capital of", return_tensors="pt")).logits[0, -1]
    probabilities, ids = logits.softmax(-1).topk(5)
    assert [text for text, _ in found] == [TOKENIZER.decode([i]) for i in ids.tolist()]
    assert [p for _, p in found] == pytest.approx(probabilities.tolist(), rel=1e-5)


def test_drawing_follows_the_distribution_and_its_cuts():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits, uniforms = probabilities.log().expand(4000, 4), torch.arange(4000, dtype=torch.float64) / 4000

    def shares(**options):
        return torch.bincount(Sampling(**options).choose(logits, uniforms), minlength=4).div(4000).tolist()

    assert shares(temperature=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=1e-3)
    assert shares(temperature=1.0, top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=1e-3)
    assert shares(temperature=1.0, top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=1e-3)
    assert shares(temperature=1.0, top_p=0.01) == [1, 0, 0, 0]
    assert shares(temperature=0.0) == [1, 0, 0, 0]
    assert shares(temperature=0.5)[0] > 0.65
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"top_k": -1}):
        with pytest.raises(ValueError, match="must hold"):
            Sampling(**wrong)


def test_a_batch_is_faster_than_one_at_a_time():
    model = tiny_model(TOKENIZER, hidden_size=64, layers=4)
    questions = [ask(f"hello {i}") for i in range(32)]
    options = {"max_new_tokens": 24}
    generate(model, TOKENIZER, questions[:2], **options)
    start = time.perf_counter()
    generate(model, TOKENIZER, questions, **options)
    batched = time.perf_counter() - start
    start = time.perf_counter()
    for question in questions[:8]:
        generate(model, TOKENIZER, [question], **options)
    assert batched < 2 * (time.perf_counter() - start)


def test_the_engine_reads_no_reply_by_itself():
    with open(engine.__file__, encoding="utf-8") as source:
        text = source.read()
    assert "import re\n" not in text and "<tool_call>" not in text and "SEARCH" not in text
