"""Answers are graded by the task alone, what failed is never counted as wrong, and likelihoods are sums done right."""

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crawl2chat import evaluation, verifier
from crawl2chat.engine import Completion, Reply
from crawl2chat.evaluation import (
    Checkpoint,
    Questions,
    bits_per_byte,
    evaluate_task,
    load_task,
    normal_form,
    read_rows,
)
from crawl2chat.protocol import END_OF_TEXT
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["The capital of France is Paris.", "12 + 34 = 46. " * 9, "Größe", "What is the capital of Japan? Tokyo."]
EXACT = SimpleNamespace(grade=lambda completion, answer: float(completion == answer))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer)


@pytest.fixture
def uniform(tokenizer):
    """A model to which every token is as likely as any other."""
    model = tiny_model(tokenizer)
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def question(text: str, answer: str, *tools: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": text}],
        "answer": answer,
        "calls": [{"name": tool} for tool in tools],
    }


def call(name: str) -> dict:
    function = {"name": name, "arguments": {"query": "x"}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def replied(text: str, *turns: dict, ended: bool = True) -> Reply:
    mask = [1, 1, 0, 1] if turns else [1, 1]
    return Reply([*turns, {"role": "assistant", "content": text}], [0], [0] * len(mask), mask, ended)


def graded(monkeypatch, replies: list[Reply], examples: list[dict], task=EXACT) -> dict:
    monkeypatch.setattr(evaluation, "generate", lambda *_args, **_kwargs: replies)
    return evaluate_task(None, None, task, examples)


def test_accuracy_endings_and_tokens_are_counted(monkeypatch):
    replies = [replied("4"), replied("5", ended=False), replied("6")]
    found = graded(monkeypatch, replies, [question("2+2", "4"), question("2+3", "6"), question("3+3", "6")])
    assert found["accuracy"] == pytest.approx(2 / 3) and found["n"] == 3
    assert found["ended"] == pytest.approx(2 / 3) and found["mean_tokens"] == 2
    assert set(found["rows"][0]) == {"prompt", "answer", "reply", "score", "ended", "tokens"}


def test_a_right_answer_without_the_wanted_tool_is_wrong(monkeypatch):
    replies = [replied("4"), replied("4", call("python")), replied("4", call("search")), replied("5", call("python"))]
    found = graded(monkeypatch, replies, [question("2+2", "4", "python")] * 4)
    assert [row["score"] for row in found["rows"]] == [0.0, 1.0, 0.0, 0.0]


def test_a_call_that_could_not_be_read_is_no_call(monkeypatch):
    broken = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": "{python"}]}
    assert graded(monkeypatch, [replied("4", broken)], [question("2+2", "4", "python")])["accuracy"] == 0


def test_a_failing_grader_is_counted_and_never_a_zero(monkeypatch):
    def grade(completion: str, answer: str) -> float:
        if completion == "?":
            raise TimeoutError("no verdict")
        return 1.0

    found = graded(monkeypatch, [replied("4"), replied("?")], [question("", "")] * 2, SimpleNamespace(grade=grade))
    assert (found["accuracy"], found["n"], found["ungraded"]) == (1.0, 1, 1)
    assert found["rows"][1]["score"] is None and found["rows"][1]["error"] == "TimeoutError: no verdict"
    with pytest.raises(ValueError, match="none of 1 answers could be graded: TimeoutError"):
        graded(monkeypatch, [replied("?")], [question("", "")], SimpleNamespace(grade=grade))


def test_samples_of_a_question_are_told_apart_and_counted_together(monkeypatch):
    replies = [replied(text) for text in ("4", "6", "5", "6")]  # both questions, then both again
    monkeypatch.setattr(evaluation, "generate", lambda _m, _t, asked, **_k: replies if len(asked) == 4 else [])
    found = evaluate_task(None, None, EXACT, [question("2+2", "4"), question("3+3", "6")], samples=2)
    assert [row["sample"] for row in found["rows"]] == [0, 0, 1, 1]
    assert (found["accuracy"], found["pass_at_2"], found["n"], found["samples"]) == (0.75, 1.0, 2, 2)
    assert found["majority_at_2"] == 0.75 and found["stderr"] == pytest.approx(0.25)  # a tie of 4 and 5 is half right


def test_more_samples_leave_the_earlier_ones_as_they_were(model, tokenizer):
    def asked(samples: int) -> list[dict]:
        how = {"samples": samples, "temperature": 1.0, "max_new_tokens": 6, "seed": 3}
        return evaluate_task(model, tokenizer, EXACT, [question("2+2", "4"), question("3+3", "6")], **how)["rows"]

    two, three = asked(2), asked(3)
    assert three[:4] == two and two[:2] != [{**row, "sample": 0} for row in two[2:]]


def test_a_vote_is_for_what_the_answer_says_and_not_for_how():
    plain, gym = SimpleNamespace(), SimpleNamespace(stated=lambda text: text.split("\n")[-1])
    assert normal_form(plain, " The answer is **12**. ") == normal_form(plain, "So the answer is: 12") == "12"
    assert normal_form(plain, "So $x = \\boxed{\\frac{1}{2}}$.") == normal_form(plain, "The answer is 0.5") == "1/2"
    assert normal_form(plain, "I don't know") != normal_form(plain, "I don't know it") != ""
    assert normal_form(SimpleNamespace(stated=verifier.stated), "Wait.\nThe answer is 12.") == "12"
    assert normal_form(plain, "Ulm,  on the Danube.") == "ulm, on the danube"
    assert normal_form(gym, "3 * 4\nThe answer is 12.") == normal_form(gym, "4 * 3\n12") == "12"
    assert normal_form(SimpleNamespace(normal=lambda text: len(text)), "abc") == "3"


def test_a_base_model_answers_as_a_transcript_up_to_the_next_speaker(monkeypatch, tokenizer):
    asked = []

    def go_on(_model, _tokenizer, documents, **_generation):
        asked.extend(documents)
        return [
            Completion(" Tokyo.\n\nHuman: And Chad?\n\nAssistant:", [], False),
            Completion(" Tokyo and", [], False),
            Completion(" Tokyo.\nAnn Lee: And Chad?", [], False),
        ]

    monkeypatch.setattr(evaluation, "complete", go_on)
    template = (ROOT / "chat_templates" / "transcript.jinja").read_text()
    found = evaluate_task(None, tokenizer, EXACT, [question("Capital of Japan?", "Tokyo.")] * 3, transcript=template)
    assert asked[0] == f"{END_OF_TEXT}Human: Capital of Japan?\n\nAssistant:"
    assert [row["reply"][0]["content"] for row in found["rows"]] == ["Tokyo.", "Tokyo and", "Tokyo."]
    assert [row["score"] for row in found["rows"]] == [1.0, 0.0, 1.0] and found["ended"] == pytest.approx(2 / 3)


def test_bits_per_byte_is_the_sum_over_tokens_after_the_end_of_text(model, tokenizer):
    ids = tokenizer(END_OF_TEXT + TEXTS[0])["input_ids"]
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    nats = -sum(logits[i, ids[i + 1]].item() for i in range(len(ids) - 1))
    assert bits_per_byte(model, tokenizer, TEXTS[:1]) == pytest.approx(nats / math.log(2) / len(TEXTS[0]), rel=1e-5)


@pytest.mark.parametrize("max_length", [2, 3, 8, 9, 512])
def test_windows_score_every_token_once(uniform, tokenizer, max_length):
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS)
    expected = tokens * math.log2(uniform.config.vocab_size) / sum(len(text.encode()) for text in TEXTS)
    assert bits_per_byte(uniform, tokenizer, TEXTS, max_length=max_length) == pytest.approx(expected, rel=1e-5)


def test_batches_and_padding_change_no_score(model, tokenizer):
    alone = bits_per_byte(model, tokenizer, TEXTS, batch_size=1)
    assert bits_per_byte(model, tokenizer, TEXTS, batch_size=4) == pytest.approx(alone, rel=1e-5)


def test_scoring_leaves_the_model_in_its_mode(model, tokenizer):
    model.train()
    bits_per_byte(model, tokenizer, TEXTS[:1])
    assert model.training
    model.eval()


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(SystemExit, match="unknown task 'adition'; did you mean 'addition'"):
        load_task("adition")


@pytest.mark.parametrize(
    "text, complaint",
    [
        (None, "no such file"),
        ("", "no rows"),
        ('{"prompt": [], "answer": "1"}\n{"prompt": [', "line 2: not a JSON row"),
        ('{"prompt": []}\n', "line 1: the row lacks 'answer'"),
        ("[1]\n", "line 1: the row lacks"),
        (b'{"prompt": [], "answer": "\xff"}\n', "line 1: not a JSON row"),
    ],
)
def test_broken_rows_are_one_clear_line(tmp_path, text, complaint):
    path = tmp_path / "test.jsonl"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as stop:
        read_rows(path, ("prompt", "answer"))
    assert str(path) in stop.value.code and complaint in stop.value.code and "\n" not in stop.value.code


def eval_script():
    spec = importlib.util.spec_from_file_location("eval_script", ROOT / "scripts" / "eval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path, model, tokenizer):
    """The eval recipe of a tiny run: two checkpoints of one random model, one task, two held-out pages."""
    for name in ("base", "sft"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{**question(f"What is {i} + 34?", str(i + 34)), "task": "addition_steps"} for i in range(5)]
    (tmp_path / "conversations" / "addition_steps").mkdir(parents=True)
    (tmp_path / "conversations" / "addition_steps" / "test.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows)
    )
    pages = [{"text": TEXTS[0], "source": "wikipedia"}, {"text": TEXTS[1], "source": "drills"}]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    script = eval_script()
    return script, script.EvalConfig(
        checkpoints=[
            Checkpoint("base", str(tmp_path / "base"), "transcript"),
            Checkpoint("sft", str(tmp_path / "sft")),
        ],
        output_dir=str(tmp_path / "eval"),
        tasks=[Questions("addition_steps", task="addition", n=4)],
        conversations=str(tmp_path / "conversations"),
        heldout=str(tmp_path / "heldout.jsonl"),
        max_new_tokens=8,
    )


def test_eval_writes_numbers_for_every_checkpoint_and_task(config, tmp_path, capsys):
    script, config = config
    script.main(config)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    for name in ("base", "sft"):
        for key in ("accuracy", "stderr", "n", "mean_tokens"):
            assert f"{name}/addition_steps/{key}" in metrics
        assert 0 <= metrics[f"{name}/ended/share"] <= 1
        assert metrics[f"{name}/bits_per_byte"] > 0 and metrics[f"{name}/bits_per_byte_wikipedia"] > 0
    replies = [json.loads(line) for line in (tmp_path / "eval" / "replies.jsonl").read_text().splitlines()]
    assert len(replies) == 8
    assert set(replies[0]) == {"checkpoint", "task", "prompt", "answer", "reply", "score", "ended", "tokens"}
    assert "addition_steps" in capsys.readouterr().out


def test_a_checkpoint_without_weights_is_one_clear_line(config, tmp_path):
    script, config = config
    (tmp_path / "sft" / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match=f"{tmp_path}/sft: no weights"):
        script.main(config)
    assert not (tmp_path / "eval" / "metrics.json").exists()


def test_a_tokenizer_that_does_not_fit_is_one_clear_line(config, tmp_path, tokenizer):
    script, config = config
    larger = tiny_tokenizer()
    larger.add_tokens([f"word{i}" for i in range(9)])
    larger.save_pretrained(tmp_path / "base")
    with pytest.raises(SystemExit, match="embedding"):
        script.main(config)


def test_an_unknown_tool_is_one_clear_line(config):
    script, config = config
    config.tasks[0].tools = ["browser"]
    with pytest.raises(SystemExit, match="no tool 'browser'"):
        script.main(config)


def test_several_samples_are_drawn_and_what_was_asked_is_recorded(config, tmp_path, capsys):
    script, config = config
    config.tasks.append(
        Questions("sampled", "addition", str(tmp_path / "conversations"), n=3, samples=3, temperature=1.5)
    )
    (tmp_path / "conversations" / "sampled").symlink_to(tmp_path / "conversations" / "addition_steps")
    config.lm_eval = config.heldout = None
    script.main(config)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    keys = {key.removeprefix("sft/sampled/") for key in metrics if key.startswith("sft/sampled/")}
    assert keys == {"accuracy", "stderr", "seeds_stderr", "n", "samples", "mean_tokens"} | {
        "pass_at_2",
        "pass_at_3",
        "majority_at_3",
    }
    assert (metrics["sft/sampled/n"], metrics["sft/sampled/samples"]) == (3, 3)
    assert "sft/addition_steps/samples" not in metrics and "majority_at_3" in capsys.readouterr().out
    replies = [json.loads(line) for line in (tmp_path / "eval" / "replies.jsonl").read_text().splitlines()]
    assert [row.get("sample") for row in replies if row["checkpoint"] == "sft"] == [None] * 4 + [0] * 3 + [1] * 3 + [
        2
    ] * 3
    settings = json.loads((tmp_path / "eval" / "settings.json").read_text())
    drawn, greedy = settings["tasks"]["sampled"], settings["tasks"]["addition_steps"]
    assert (drawn["temperature"], drawn["samples"], greedy["temperature"]) == (1.5, 3, 0.0)
    assert {"top_p", "top_k", "seed", "questions"} < drawn.keys() and "torch" in settings["versions"]
    assert drawn["prompts_sha256"] != greedy["prompts_sha256"]
    first = [{"prompt": row["prompt"]} for row in replies if row["task"] == "sampled"][:3]
    assert evaluation.settings(config.tasks[1], first, temperature=0.0)["prompts_sha256"] == drawn["prompts_sha256"]


def test_several_greedy_samples_are_one_clear_line(config, tmp_path):
    script, config = config
    config.tasks[0].samples = 4
    with pytest.raises(SystemExit, match="addition_steps: 4 greedy samples are all the same"):
        script.main(config)
