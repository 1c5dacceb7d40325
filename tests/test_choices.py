"""Choices are scored as lm-eval scores them, on one rank or two, and held-out pages make fair questions."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tests.tiny import TEXT, tiny_model, tiny_tokenizer
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel

from crawl2chat import choices
from crawl2chat.choices import (
    Question,
    choices_from_pages,
    encode_choices,
    log_likelihoods,
    read_choices,
    score_choices,
)
from crawl2chat.protocol import END_OF_TEXT

ROOT = Path(__file__).parents[1]
WORDS = [*TEXT.replace("\n", " ").split(), *["東京都", "naïveté"] * 5]  # characters are not bytes


def made_up_rows(n: int, seed: int = 0) -> list[dict]:
    """Rows with HellaSwag's columns and its oddities: brackets, titles, double spaces, empty second parts, labels that
    are text.
    """
    rng = random.Random(seed)
    words = lambda few, many: " ".join(rng.choices(WORDS, k=rng.randint(few, many)))  # noqa: E731
    odd = ["", " [title] ", " [step] ", "  ", " [header] How? [title] "]
    rows = []
    for i in range(n):
        second = "" if i % 3 == 0 else words(1, 3)
        first = words(2, 12) + rng.choice(odd) + words(1, 8) + (" [substeps]" if i % 5 == 0 else "")
        endings = [words(1, 9) + rng.choice(odd) + words(1, 4) for _ in range(4)]
        label = rng.randrange(4) if i % 2 else str(rng.randrange(4))
        row = {
            "ind": i,
            "activity_label": rng.choice(["Asking", "How to [spell]", f"{END_OF_TEXT}Opened"]),
            "ctx_a": first,
            "ctx_b": second,
        }
        rows.append({**row, "ctx": f"{first} {second}", "endings": endings, "label": str(label)})
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(END_OF_TEXT)


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer)


@pytest.fixture
def questions(tmp_path):
    return read_choices(write_rows(tmp_path / "rows.jsonl", made_up_rows(10)))


def gpt2_that_opens_with_a_token():
    """A GPT-2 of 80 positions, too few for many rows, and a tokenizer that puts a token before every text."""
    tokenizer = tiny_tokenizer(END_OF_TEXT)
    tokenizer.bos_token = END_OF_TEXT
    opening = [(END_OF_TEXT, tokenizer.convert_tokens_to_ids(END_OF_TEXT))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=opening
    )
    torch.manual_seed(0)
    sizes = {"n_positions": 80, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)), tokenizer


def test_accuracies_equal_lm_evals_own_and_likelihoods_agree(tmp_path, tokenizer, model, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager, hellaswag

    rows = write_rows(tmp_path / "rows.jsonl", made_up_rows(40))
    task = {"include": str(Path(hellaswag.__path__[0], "hellaswag.yaml")), "task": "local_hellaswag", "tag": []}
    task |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": str(rows)}}}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_hellaswag.yaml").write_text(yaml.safe_dump(task | {"training_split": None}))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    questions = read_choices(rows)
    for name, (own, words) in {"llama": (model, tokenizer), "gpt2": gpt2_that_opens_with_a_token()}.items():
        own.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
        options = {"model_args": f"pretrained={tmp_path / name}", "device": "cpu", "batch_size": 3}
        found = simple_evaluate("hf", tasks=["local_hellaswag"], task_manager=manager, **options)
        theirs = found["results"]["local_hellaswag"]
        ours = score_choices(own, words, questions, batch_size=7)
        assert ours == pytest.approx(
            {**{key: theirs[f"{key},none"] for key in ours if key != "n"}, "n": 40}, abs=1e-12
        )
        assert 0 < ours["acc"] < 1 and 0 < ours["acc_norm"] < 1
        samples = sorted(found["samples"]["local_hellaswag"], key=lambda sample: sample["doc_id"])
        for question, sample, scores in zip(questions, samples, log_likelihoods(own, words, questions), strict=True):
            assert [argument[0] for argument in sample["arguments"]] == [question.query] * 4
            assert [argument[1] for argument in sample["arguments"]] == [f" {choice}" for choice in question.choices]
            expected = [response[0][0] for response in sample["resps"]]
            torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=1e-3)


def test_hellaswags_marks_are_taken_out(tmp_path):
    row = {"activity_label": "Baking", "ctx_a": "[header] How to bake [title] Buy flour.", "ctx_b": "then MIX it"}
    row |= {"endings": [" [step] Stir  well [substeps]", "Run."], "label": "1"}
    (question,) = read_choices(write_rows(tmp_path / "rows.jsonl", [row]))
    assert question == Question("Baking: How to bake. Buy flour. Then mix it", (" Stir well ", "Run."), 1)


def test_a_general_question_is_taken_as_it_stands(tmp_path):
    row = {"query": "The capital of [France] is", "endings": ["Paris", "Tokyo", "46"], "label": 0}
    (question,) = read_choices(write_rows(tmp_path / "rows.jsonl", [row]))
    assert question == Question("The capital of [France] is", ("Paris", "Tokyo", "46"), 0)


def test_parquet_and_json_lines_hold_the_same_questions(tmp_path):
    rows = made_up_rows(12)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_choices(tmp_path / "rows.parquet") == read_choices(write_rows(tmp_path / "rows.jsonl", rows))


def test_a_limit_draws_by_its_seed(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", made_up_rows(30))
    few = read_choices(path, 8, seed=1)
    assert few == read_choices(path, 8, seed=1) != read_choices(path, 8, seed=2)
    assert len(few) == 8 and set(few) <= set(read_choices(path))


ROW = {"activity_label": "A", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": "0"}


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"label": "2"}, "row 1: `label` must be the right ending's index, 0 to 1, got '2'"),
        ({"label": ""}, "`label` must be .* got ''"),
        ({"label": -1}, "`label` must be .* got -1"),
        ({"endings": ["d"]}, "`endings` must be a list of two texts or more"),
        ({"endings": ["d", None]}, "`endings` must be a list of two texts or more"),
        ({"ctx_b": None}, "needs the texts `activity_label`, `ctx_a` and `ctx_b`"),
        ({"query": "  "}, "the question has no beginning"),
    ],
)
def test_a_row_that_is_no_question_is_one_clear_line(tmp_path, change, complaint):
    path = write_rows(tmp_path / "rows.jsonl", [ROW | change])
    with pytest.raises(SystemExit, match=f"error: {path}, .*{complaint}" if "row" in complaint else complaint):
        read_choices(path)


def test_sources_without_questions_are_one_clear_line(tmp_path):
    lacking = {key: value for key, value in ROW.items() if key != "endings"}
    with pytest.raises(SystemExit, match="no key 'endings'"):
        read_choices(write_rows(tmp_path / "rows.jsonl", [lacking]))
    with pytest.raises(SystemExit, match="the shard is empty"):
        read_choices(write_rows(tmp_path / "none.jsonl", []))
    with pytest.raises(SystemExit, match="somebody/hellaswag: cannot be had from the hub"):
        read_choices("somebody/hellaswag")


def test_scores_depend_on_no_batch_and_change_neither_mode_nor_chance(model, tokenizer, questions):
    alone = log_likelihoods(model, tokenizer, questions, batch_size=1)
    model.train()
    state = torch.get_rng_state(), random.getstate()
    for batch_size in (3, 16, 64):
        together = log_likelihoods(model, tokenizer, questions, batch_size)
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert model.training and torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    model.eval()
    score_choices(model, tokenizer, questions)
    assert not model.training


def test_lengths_padded_for_a_compiled_model_change_no_score(model, tokenizer, questions, monkeypatch):
    expected = log_likelihoods(model, tokenizer, questions)
    monkeypatch.setitem(choices.PAD_LENGTH, "cpu", 64)
    shapes = set()
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.add(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    padded = log_likelihoods(model, tokenizer, questions, batch_size=12)  # 40 texts: the last batch is not full
    handle.remove()
    assert shapes <= {(12, 64), (12, 128)}
    for one, other in zip(expected, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_the_spaces_that_close_a_beginning_go_to_the_ending(tokenizer):
    closed, plain = Question("The capital ", ("of", "is"), 0), Question("The capital", ("of", "is"), 0)
    (head, tail), (head_2, tail_2) = encode_choices(tokenizer, [closed])[0], encode_choices(tokenizer, [plain])[0]
    assert head == head_2 and tokenizer.decode(tail) == "  of" and tokenizer.decode(tail_2) == " of"


def test_a_diverged_model_stops_the_run(tokenizer, questions):
    broken = tiny_model(tokenizer)
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(SystemExit, match="not finite; the run has diverged"):
        score_choices(broken, tokenizer, questions)


def test_a_model_that_rescales_its_logits_is_refused(tokenizer, questions):
    capped = tiny_model(tokenizer)
    capped.config.final_logit_softcapping = 30.0
    with pytest.raises(SystemExit, match="llama rescales its logits"):
        score_choices(capped, tokenizer, questions)


def test_an_ending_longer_than_the_model_is_one_clear_line(model, tokenizer):
    with pytest.raises(SystemExit, match="longer than the model's 256 positions"):
        score_choices(model, tokenizer, [Question("What is", (TEXT * 4, "46"), 1)])


TWO_RANKS = """
import json, sys, torch
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.tiny import tiny_model, tiny_tokenizer
from crawl2chat.choices import read_choices, score_choices
torch.distributed.init_process_group("gloo", init_method="file://{folder}/meet", rank=int(sys.argv[1]), world_size=2)
tokenizer = tiny_tokenizer("<|endoftext|>")
model, calls = tiny_model(tokenizer), []
model.lm_head.register_forward_pre_hook(lambda *_: calls.append(1))
found = score_choices(model, tokenizer, read_choices({folder!r} + "/rows.jsonl"), batch_size=8)
Path({folder!r}, sys.argv[1] + ".json").write_text(json.dumps([found, len(calls)]))
"""


def test_two_ranks_share_the_questions_and_agree_with_one(tmp_path, model, tokenizer):
    rows = write_rows(tmp_path / "rows.jsonl", made_up_rows(9))  # 36 texts in batches of 8: five, an odd number
    code = TWO_RANKS.format(root=str(ROOT), folder=str(tmp_path))
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(rank)], cwd=ROOT) for rank in range(2)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    (first, calls), (second, other_calls) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == pytest.approx(score_choices(model, tokenizer, read_choices(rows), batch_size=8))
    assert calls == other_calls == 3  # ZeRO-3 hangs where one rank calls the model more often


def pages(source: str, n: int, sentences: int) -> list[dict]:
    kinds = [
        "The {0} is red.",
        "A {0} has two doors.",
        "Nobody has seen the {0}.",
        "Ask J. {0} about it!",
        "So it is.",
    ]
    texts = [" ".join(kinds[i % 5].format(f"{source}{k}{i}") for i in range(sentences)) for k in range(n)]
    return [{"text": text, "source": source} for text in texts]


def test_a_page_asks_how_it_goes_on():
    held_out = pages("car", 6, 5) + pages("house", 4, 3)
    questions = choices_from_pages(held_out, 100, seed=0)
    assert questions == choices_from_pages(held_out, 100, seed=0) != choices_from_pages(held_out, 100, seed=1)
    texts = [page["text"] for page in held_out]
    for question in questions:
        right = question.choices[question.gold]
        assert any(text.startswith(f"{question.query} {right}") for text in texts)
        assert len(set(question.choices)) == 4
        page = next(text for text in texts if text.startswith(question.query))
        assert not any(wrong in page for wrong in question.choices if wrong != right)
        assert "house" in question.query or not any("house" in choice for choice in question.choices)
    assert {question.gold for question in questions} == {0, 1, 2, 3}
    assert all(len(question.query) <= 60 for question in choices_from_pages(held_out, 100, seed=0, context=60))


def test_wrong_endings_stand_at_the_same_place_and_match_the_length():
    for question in choices_from_pages(pages("car", 9, 4), 20, seed=0):
        assert len({choice.split("car")[0] for choice in question.choices}) == 1  # the same sentence of other pages
        assert max(map(len, question.choices)) - min(map(len, question.choices)) <= 1


def test_fewer_questions_than_asked_are_told_and_none_is_refused(capsys):
    few = choices_from_pages(pages("car", 4, 2), 50, seed=0)
    assert f"4 held-out pages give {len(few)} questions, not the 50 asked for" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="3 held-out pages give no question"):
        choices_from_pages(pages("car", 3, 4), 10, seed=0)


def test_a_model_that_has_read_the_pages_answers(tokenizer):
    torch.manual_seed(0)
    held_out = pages("car", 8, 4)
    questions = choices_from_pages(held_out, 16, seed=0)
    reader = tiny_model(tokenizer, hidden_size=64)
    before = score_choices(reader, tokenizer, questions)["acc"]
    ids = tokenizer([page["text"] for page in held_out], padding=True, padding_side="right", return_tensors="pt")
    labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3)
    for _ in range(120):
        loss = reader(**ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = score_choices(reader, tokenizer, questions)
    assert before < 0.6 and after["acc"] > 0.9 and after["acc_norm"] > 0.9
