"""Rewards on replies of known worth, and what each would pay to a reply that only looks good."""

import random
import types

import pytest
from tests.tiny import tiny_tokenizer

from crawl2chat import rewards
from crawl2chat.rewards import Reward, correct, format, language, load_rewards, short, unrepeated
from crawl2chat.tasks import addition, apples

SUM = {"task": ["addition"], "answer": ["46"]}
EMPTY = ["", " \n", [{"role": "assistant", "content": ""}], []]
tokenizer = tiny_tokenizer()


def reply(content: str, **more) -> list[dict]:
    return [{"role": "assistant", "content": content, **more}]


def ids(text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("seed", range(3))
def test_correct_is_the_tasks_own_grade(seed):
    rows = list(addition.examples("train", count=20, seed=seed))
    rng = random.Random(seed)
    completions = [row["solution"] if rng.random() < 0.5 else "It is 7." for row in rows]
    answers = [row["answer"] for row in rows]
    grades = [addition.grade(text, wanted) for text, wanted in zip(completions, answers, strict=True)]
    assert 0 < sum(grades) < 20
    assert correct(completions, ["addition"] * 20, answers) == grades
    assert correct([reply(text) for text in completions], ["addition"] * 20, answers) == grades


@pytest.mark.parametrize(
    "completion, score",
    [
        (reply("46.", thinking="is it 45 or 46"), 1.0),  # a thought is not an answer
        ("<think>45? 44?</think>46.", 1.0),
        ("<think>46.", 0.0),  # a thought that does not end says nothing
        (reply("", thinking="46."), 0.0),
        (reply("<think>a</think>46.<think>"), 0.0),
        ([*reply("12 + 34"), {"role": "tool", "name": "python", "content": "46"}, *reply("46.")], 1.0),
        ([*reply("46."), {"role": "tool", "name": "python", "content": "46"}], 1.0),
        ([{"role": "assistant", "content": None}], 0.0),
    ],
)
def test_correct_reads_the_last_turn_without_its_thoughts(completion, score):
    assert correct([completion], **SUM) == [score]


def test_a_demanded_tool_must_have_been_called():
    call = {"type": "function", "function": {"name": "python", "arguments": {"code": "12 + 34"}}}
    with_call, without = [*reply("", tool_calls=[call]), *reply("46.")], reply("46.")
    calls = [[{"name": "python", "arguments": None}], [{"name": "python", "arguments": None}]]
    assert correct([with_call, without], ["addition"] * 2, ["46"] * 2, calls=calls) == [1.0, 0.0]
    assert correct([with_call, without], ["addition"] * 2, ["46"] * 2, calls=[None, None]) == [1.0, 1.0]


def test_a_grader_that_fails_is_none_said_aloud_and_asked_again(monkeypatch, capsys):
    def out_of_order(completion, answer):
        raise OSError("no child could be started")

    monkeypatch.setattr(rewards, "load_task", lambda name: types.SimpleNamespace(grade=out_of_order))
    columns = {"task": ["addition"] * 2, "answer": ["4646"] * 2}
    assert correct(["4646.", ""], **columns) == [None, None]
    assert capsys.readouterr().out == (
        "correct: 2 of 2 replies could not be graded: OSError: no child could be started\n"
    )
    assert short(["4646.", ""], **columns, completion_ids=[[1], [1]]) == [None, None]
    monkeypatch.undo()
    assert correct(["4646.", ""], **columns) == [1.0, 0.0]


@pytest.mark.parametrize(
    "text, score",
    [
        ("<think>\n2 and 2\n</think>\n4", 1.0),
        ("  <think>2 and 2</think>4", 1.0),
        ("4", 0.0),
        ("<think>2 and 2", 0.0),
        ("<think>2 and 2</think>", 0.0),
        ("<think>2 and 2</think> .\n", 0.0),
        ("<think></think>4", 0.0),
        ("<think> \n</think>4", 0.0),
        ("4 <think>2 and 2</think>4", 0.0),
        ("<think>2</think><think>2</think>4", 0.0),
        ("<think>2<think>2</think>4", 0.0),
        ("<think>2</think></think>4", 0.0),
        ("2</think>4", 0.0),
        ("</think>4<think>", 0.0),
        ("", 0.0),
    ],
)
def test_format_wants_one_closed_thought_first_and_words_after_it(text, score):
    assert format([text]) == [score]
    from trl.chat_template_utils import parse_response

    prefix = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 2?"}], add_generation_prompt=True, return_dict=False
    )
    message = parse_response(tokenizer, ids(text + "<|im_end|>"), prefix=prefix)
    assert format([[message]], [ids(text + "<|im_end|>")], tokenizer=tokenizer) == [score]


def test_short_pays_right_replies_alone_in_a_line_down_to_the_limit():
    completions, tokens = ["46.", "46.", "46.", "46.", "45.", ""], [0, 16, 32, 64, 1, 0]
    columns = {"task": ["addition"] * 6, "answer": ["46"] * 6, "completion_ids": [[1] * n for n in tokens]}
    assert short(completions, **columns, limit=32) == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "text, most",
    [
        ("the the the", 0.34),
        ("wait, let me check. " * 8, 0.2),
        ("a" * 400, 0.3),
        ("1" * 400, 0.1),
        ("是的" * 30, 0.1),
        ("The answer is 4. " * 10, 0.2),
    ],
)
def test_unrepeated_sees_a_phrase_said_again_and_again(text, most):
    assert unrepeated([text])[0] <= most
    assert unrepeated([reply(text), reply("", thinking=text)]) == unrepeated([text, text])


@pytest.mark.parametrize("seed", range(3))
def test_unrepeated_leaves_worked_solutions_alone(seed):
    rows = [*addition.examples("train", count=100, seed=seed), *apples.examples("train", count=100, seed=seed)]
    rows += addition.examples("train", manner="direct", count=100, seed=seed)
    scores = unrepeated([row["solution"] for row in rows])
    assert sum(scores) / len(scores) > 0.97
    assert min(scores) > 0.7


def test_the_runs_of_unrepeated_are_as_long_as_the_knob_says():
    text = "a b c d e f a b c d g h"
    assert unrepeated([text], n=6) == [1.0]
    assert unrepeated([text], n=4) == [8 / 9]
    assert unrepeated([text], n=1) == [8 / 12]


@pytest.mark.parametrize(
    "prompt, text, score",
    [
        ("What is it?", "It is a cat.", 1.0),
        ("What is it?", "Это кот", 0.0),
        ("Что это?", "Это кот", 1.0),
        ("What is it?", "cat кот", 0.5),
        ("这是什么?", "是猫。", 1.0),
        ("これは何ですか", "それは猫です。", 1.0),
        ("これは何ですか", "It is a cat.", 0.0),
        ("What is 2 + 2?", "4.", 1.0),
        ("2 + 2?", "Четыре", 1.0),
        ("What is it?", "𝑥 = 2, so it is a cat", 1.0),
        ("What is it?", "...", 0.0),
    ],
)
def test_language_is_the_share_of_letters_in_the_prompts_script(prompt, text, score):
    assert language([text], [prompt]) == [score]
    system = {"role": "system", "content": "Ответь. Ответь. Ответь. Ответь."}
    messages = [system, {"role": "user", "content": prompt}]
    assert language([reply(text)], [messages]) == [score]


def test_language_reads_thoughts_too():
    assert language([reply("ab", thinking="xykoткот")], ["What?"]) == [0.6]


@pytest.mark.parametrize("completion", EMPTY)
def test_an_empty_reply_earns_nothing_of_any_reward(completion):
    functions, _ = load_rewards([Reward(n) for n in "correct format short unrepeated language".split()], tokenizer)
    columns = {**SUM, "calls": [None], "prompts": ["What is 12 + 34?"], "completion_ids": [[3]], "name": ["sums"]}
    assert [function(completions=[completion], **columns) for function in functions] == [[0.0]] * 5


def test_a_recipes_rewards_come_with_their_weights_knobs_and_names():
    from trl.trainer.utils import get_callable_name

    entries = [Reward("correct"), Reward("short", 0.1, {"limit": 10}), Reward("unrepeated", -0.5, {"n": 1})]
    functions, weights = load_rewards(entries, tokenizer)
    assert weights == [1.0, 0.1, -0.5]
    assert [function.__name__ for function in functions] == ["correct", "short", "unrepeated"]
    assert [get_callable_name(function) for function in functions] == ["correct", "short", "unrepeated"]
    assert functions[1](["46."], **SUM, completion_ids=[[1] * 5], trainer_state=None) == [0.5]
    assert functions[2](["so so it is"], trainer_state=None) == [0.75]


@pytest.mark.parametrize(
    "entries, complaint",
    [
        ([Reward("corect")], "rewards: no reward 'corect'; did you mean 'correct'?"),
        (
            [Reward("load_rewards")],
            "rewards: no reward 'load_rewards'; there is correct, format, language, short, unrep",
        ),
        ([Reward("short", 1.0, {"limits": 3})], "rewards: short has no knob 'limits'; did you mean 'limit'?"),
        ([Reward("correct", 1.0, {"limit": 3})], "rewards: correct has no knob 'limit'; there is none"),
        ([Reward("format", 1.0, {"tokenizer": 3})], "rewards: format has no knob 'tokenizer'; there is none"),
        ([Reward("short", 1.0, {"limit": 0})], "rewards: short: limit must be a whole number of at least 1, got 0"),
        (
            [Reward("short", 1.0, {"limit": "64"})],
            "rewards: short: limit must be a whole number of at least 1, got '64'",
        ),
        (
            [Reward("short", 1.0, {"limit": True})],
            "rewards: short: limit must be a whole number of at least 1, got True",
        ),
        ([Reward("correct"), Reward("correct", 2.0)], "rewards: correct is named twice; give it one weight"),
        ([Reward("correct", float("nan"))], "rewards: correct: weight must be a number, got nan"),
        ([], "rewards: none is named; begin with {name: correct}"),
    ],
)
def test_a_reward_that_cannot_be_is_one_line(entries, complaint):
    with pytest.raises(SystemExit) as stopped:
        load_rewards(entries, tokenizer)
    assert str(stopped.value).startswith(f"error: {complaint}")
    assert "\n" not in str(stopped.value)
