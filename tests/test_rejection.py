"""Rejection sampling: which try is kept, which problems are set aside, what bears loss, and rounds that go on."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

from crawl2chat import practice, rejection
from crawl2chat.finetuning import FinetuningTrainer, SFTArguments
from crawl2chat.practice import Rollout
from crawl2chat.protocol import IM_END, load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.rejection import IGNORED, measure, open_reward_model, select, training_row, tries
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
PROBLEMS = [{"prompt": [{"role": "user", "content": f"{i}?"}], "answer": str(i), "task": "sums"} for i in range(6)]
SUMS = [{"name": "sums", "task": "sums", "train": 12, "test": 4}]
KEYS = {
    "problems": SUMS, "rounds": 2, "problems_per_round": 4, "samples": 4, "max_new_tokens": 5, "choose": "short",
    "per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 1.0e-2, "use_cpu": True,
    "report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "bf16": False,
    "gradient_checkpointing": False, "seed": 0,
}  # fmt: skip


def tried(score: float | None, tokens: int = 3, ended: bool = True) -> Rollout:
    text = f"{tokens} {score}"
    ids, mask = [7] * tokens, [1] * tokens
    return Rollout([{"role": "assistant", "content": text}], text, [1, 2], ids, mask, ended, score)


def chosen(found: rejection.Practice) -> list[list[int]]:
    """The numbers of the tries that were chosen, a list a problem."""
    return [[i for i, one in enumerate(look["rollouts"]) if one["chosen"]] for look in found.shown]


# -- which try


def test_short_keeps_the_shortest_right_try_and_of_equals_the_first():
    group = [tried(1, 9), tried(0, 1), tried(1, 4), tried(1, 4), tried(1, 7)]
    found = select(PROBLEMS[:1], [group], "short")
    assert chosen(found) == [[2]] and len(found.rows[0]["input_ids"]) == 2 + 4


def test_the_length_that_counts_is_what_the_model_wrote_not_what_a_tool_said():
    called = Rollout([], "", [1], [7] * 30, [1, 1] + [0] * 28, True, 1.0)
    assert chosen(select(PROBLEMS[:1], [[tried(1, 3), called, tried(0)]], "short")) == [[1]]


def test_any_keeps_some_right_try_and_the_same_one_for_a_seed():
    groups = [[tried(0), *(tried(1, n) for n in range(1, 9))] for _ in PROBLEMS]
    first, again, other = (select(PROBLEMS, groups, "any", seed=seed) for seed in (1, 1, 2))
    picks = [pick for (pick,) in chosen(first)]
    assert 0 not in picks and len(set(picks)) > 1
    assert first == again and first.rows != other.rows


def test_the_reward_model_decides_among_right_tries_alone():
    asked = []

    def score(conversations):
        asked.extend(conversations)
        return [float(len(turns[-1]["content"])) for turns in conversations]

    groups = [[tried(0, 100000), tried(1, 5), tried(1, 500), tried(1, 50)], [tried(1, 1), tried(0)]]
    assert chosen(select(PROBLEMS[:2], groups, "reward_model", score=score)) == [[2], [0]]
    assert len(asked) == 4 and asked[0][0] == PROBLEMS[0]["prompt"][0] and asked[0][1]["role"] == "assistant"


# -- which problems


def test_all_right_and_all_wrong_are_counted_and_set_aside():
    groups = [[tried(1)] * 3, [tried(0)] * 3, [tried(1), tried(0), tried(0)], [tried(0.5), tried(0), tried(0)]]
    found = select(PROBLEMS[:4], groups, "short")
    wanted = {"problems": 4, "rollouts": 12, "right": 4, "kept": 1, "all_right": 1, "all_wrong": 2}
    assert found.counts == {**wanted, "unusable": 0, "ungraded": 0}
    assert len(found.rows) == 1 and [look["prompt"] for look in found.shown] == ["2?"]


def test_a_right_try_that_did_not_end_or_is_too_long_is_not_trained_on():
    groups = [
        [tried(1, ended=False), tried(0)],
        [tried(1, 50), tried(0)],
        [tried(1, ended=False), tried(1, 8), tried(0)],
    ]
    found = select(PROBLEMS[:3], groups, "short", max_length=10)
    assert found.counts["unusable"] == 2 and found.counts["kept"] == 1 and chosen(found) == [[1]]


def test_a_try_without_a_verdict_makes_no_problem_wrong_or_mixed():
    groups = [[tried(1), tried(None)], [tried(0), tried(None)], [tried(None), tried(None)]]
    counts = select(PROBLEMS[:3], groups, "short").counts
    assert (counts["all_right"], counts["all_wrong"], counts["ungraded"], counts["kept"]) == (1, 1, 1, 0)


def test_problems_are_dealt_once_each_and_too_few_are_refused(capsys):
    dealt = rejection.deal(PROBLEMS, 3, 2, seed=0)
    assert sorted(p["answer"] for round_ in dealt for p in round_) == list("012345")
    assert dealt == rejection.deal(PROBLEMS, 3, 2, seed=0)
    with pytest.raises(SystemExit, match="need 9 different problems and there are 6"):
        rejection.deal(PROBLEMS, 3, 3, seed=0)


# -- what is trained on


def test_loss_is_on_what_the_model_wrote_alone_and_the_ids_are_the_rollouts_own():
    rollout = Rollout([], "", [1, 2, 3], [7, 8, 9, 4, 5], [1, 1, 0, 0, 1], True, 1.0)
    row = training_row(rollout)
    assert row["input_ids"] == [1, 2, 3, 7, 8, 9, 4, 5]
    assert row["labels"] == [IGNORED] * 3 + [7, 8, IGNORED, IGNORED, 5]


@torch.no_grad()
def likelihood(model, rows: list[dict]) -> float:
    """Mean log-probability of the tokens that bear loss, by hand."""
    found = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        found.append(logs[labels != IGNORED].gather(1, labels[labels != IGNORED][:, None]).mean())
    return torch.stack(found).mean().item()


def test_training_makes_the_chosen_tries_likelier(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    groups = tries(model, tokenizer, PROBLEMS, 4, seed=0, max_new_tokens=6, temperature=1.0)
    rows = [training_row(group[0]) for group in groups]
    before = likelihood(model, rows)
    args = SFTArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, use_cpu=True, report_to="none", bf16=False,
        gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, learning_rate=1e-2, num_train_epochs=2,
    )  # fmt: skip
    FinetuningTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).run()
    assert likelihood(model.eval(), rows) > before + 1


# -- the reward model


def reward_model(folder: Path, labels: int = 1) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=labels, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_the_reward_models_scores_do_not_depend_on_the_batch(tmp_path):
    talks = [[*p["prompt"], {"role": "assistant", "content": "so " * n}] for n, p in enumerate(PROBLEMS, 1)]
    path, device = str(reward_model(tmp_path)), torch.device("cpu")
    together, alone = (open_reward_model(path, device, batch_size=size)(talks) for size in (4, 1))
    assert together == pytest.approx(alone, abs=1e-5) and len(set(together)) == 6


def test_what_is_no_reward_model_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="has 3 labels"):
        open_reward_model(str(reward_model(tmp_path / "three", labels=3)), torch.device("cpu"))
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "chat")
    tiny_model(tokenizer).save_pretrained(tmp_path / "chat")
    with pytest.raises(SystemExit, match="is no reward model, its weights lack"):
        open_reward_model(str(tmp_path / "chat"), torch.device("cpu"))


# -- the script


def script():
    spec = importlib.util.spec_from_file_location("rejection_script", ROOT / "scripts/rejection.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(output: Path, **keys) -> dict:
    """The script's main() on KEYS and `keys`; its metrics."""
    module, recipe = script(), output.with_suffix(".yaml")
    recipe.write_text(json.dumps({**KEYS, **keys, "output_dir": str(output)}))
    module.main(*parse_recipe(*module.RECIPE, args=[str(recipe)]))
    return json.loads((output / "metrics.json").read_text())


def stops(output: Path, **keys) -> str:
    with pytest.raises(SystemExit) as stop:
        run(output, **keys)
    assert "\n" not in str(stop.value.code) and not (output / "metrics.json").exists()
    return str(stop.value.code)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A chat model of random weights, for which many tokens end a turn."""
    folder, tokenizer = tmp_path_factory.mktemp("chat"), tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    model = tiny_model(tokenizer)
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(IM_END), *range(30, 250)]
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def graded(monkeypatch):
    """About half of all replies are right: those whose characters add up to an even number."""
    grade = lambda task, row, messages, text: (float(sum(map(ord, text)) % 2 == 0), "")  # noqa: E731
    monkeypatch.setattr(practice, "grade_reply", grade)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A run left alone: its folder, its metrics, what it printed is not kept."""
    folder = tmp_path_factory.mktemp("whole") / "rejection"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(practice, "grade_reply", lambda task, row, m, text: (float(sum(map(ord, text)) % 2 == 0), ""))
        return folder, run(folder, model_name_or_path=start)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_last_rounds_model_and_every_number_of_the_rounds(whole, start):
    folder, metrics = whole
    rows = json.loads((folder / "rounds.json").read_text())
    assert [row["round"] for row in rows] == [0, 1, 2] and [row["rollouts"] for row in rows] == [0, 16, 32]
    keys = "pass_at_1 stderr pass_at_k k greedy mean_length worked seconds kept all_right all_wrong".split()
    assert all(set(keys) <= row.keys() for row in rows) and rows[0]["seconds"] == 0 < rows[1]["seconds"]
    assert metrics["pass_at_1_first"] == rows[0]["pass_at_1"] and metrics["pass_at_1_last"] == rows[2]["pass_at_1"]
    assert metrics["mean_length_last"] == rows[2]["mean_length"] and metrics["rounds"] == 2
    assert metrics["rollouts"] == 32 and metrics["kept"] + metrics["all_right"] + metrics["all_wrong"] <= 8
    assert metrics["kept"] == rows[1]["kept"] + rows[2]["kept"] > 0
    assert same(weights(folder), weights(folder / "round-2")) and load_tokenizer(folder).eos_token == IM_END
    assert not same(weights(folder), weights(folder / "round-1")) and not same(weights(folder), weights(start))


def test_tries_are_kept_to_be_looked_at_with_the_chosen_one_marked(whole):
    looks = [json.loads(line) for line in (whole[0] / "rollouts.jsonl").read_text().splitlines()]
    assert {look["round"] for look in looks} == {1, 2}
    for look in looks:
        marks = [one["score"] for one in look["rollouts"]]
        assert len(marks) == 4 and 0 < sum(marks) < 4 and look["prompt"]
        (picked,) = [one for one in look["rollouts"] if one["chosen"]]
        assert picked["score"] == 1


@pytest.mark.parametrize(
    "moment", ["before the tries are chosen", "while it trains", "before it is saved", "measuring"]
)
def test_a_run_that_was_cut_off_goes_on_to_the_same_rows_and_weights(
    whole, start, graded, tmp_path, monkeypatch, moment
):
    class Cut(BaseException):
        pass

    def cut_at_second(function):
        calls = []

        def wrapped(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise Cut
            return function(*args, **kwargs)

        return wrapped

    place = {
        "before the tries are chosen": (rejection, "select"),
        "while it trains": (FinetuningTrainer, "training_step"),
        "before it is saved": (FinetuningTrainer, "save_model"),
        "measuring": (rejection, "measure"),
    }[moment]
    output = tmp_path / "rejection"
    with monkeypatch.context() as patch:
        patch.setattr(*place, cut_at_second(getattr(*place)))
        with pytest.raises(Cut):
            run(output, model_name_or_path=start)
    assert not (output / "metrics.json").exists()
    run(output, model_name_or_path=start)
    for number in (1, 2):
        one, other = (rejection.read_practice(rejection.round_folder(f, number)) for f in (whole[0], output))
        assert one.rows == other.rows and one.counts == other.counts
    assert same(weights(output), weights(whole[0]))


def test_a_changed_recipe_is_named_and_refused_and_a_finished_run_begins_anew(start, graded, tmp_path, monkeypatch):
    output, keys = tmp_path / "rejection", {"model_name_or_path": start, "rounds": 1}
    with monkeypatch.context() as patch:
        patch.setattr(FinetuningTrainer, "run", lambda self: sys.exit("cut off"))
        assert stops(output, **keys) == "cut off"
    assert "temperature: 1.0 -> 0.7" in stops(output, **keys, temperature=0.7)
    assert "learning_rate: 0.01 -> 0.02" in stops(output, **keys, learning_rate=0.02)
    run(output, **keys, temperature=0.7, resume_from_checkpoint=False)
    assert (output / "_earlier/round-1").exists()
    run(output, **keys)
    assert json.loads((output / "run.json").read_text())["recipe"]["temperature"] == 1.0


def test_from_the_start_a_round_trains_on_all_rows_so_far(start, graded, tmp_path, whole, monkeypatch):
    seen, init = [], FinetuningTrainer.__init__

    def watched(self, model, args, **kwargs):
        seen.append((len(kwargs["train_dataset"]), same(model.state_dict(), weights(start))))
        init(self, model=model, args=args, **kwargs)

    monkeypatch.setattr(FinetuningTrainer, "__init__", watched)
    metrics = run(tmp_path / "rejection", model_name_or_path=start, from_start=True)
    kept = [row["kept"] for row in json.loads((tmp_path / "rejection/rounds.json").read_text())]
    assert seen == [(kept[1], True), (kept[1] + kept[2], True)] and metrics["kept"] == sum(kept)


def test_no_right_try_at_all_is_one_line_and_keeps_the_measurement(start, tmp_path):
    said = stops(tmp_path / "rejection", model_name_or_path=start)
    assert "round-1: none of 16 tries at 4 problems is right" in said
    assert [row["round"] for row in json.loads((tmp_path / "rejection/rounds.json").read_text())] == [0]


def test_where_every_try_is_right_the_model_stays_as_it_is(start, tmp_path, monkeypatch):
    monkeypatch.setattr(practice, "grade_reply", lambda *args: (1.0, ""))
    metrics = run(tmp_path / "rejection", model_name_or_path=start, rounds=1)
    assert metrics["all_right"] == 4 and metrics["kept"] == 0 and metrics["pass_at_1_last"] == 1
    assert same(weights(tmp_path / "rejection"), weights(start))


def test_bad_input_is_one_line_each(start, tmp_path):
    base = tmp_path / "base"
    tokenizer = tiny_tokenizer("<|endoftext|>")
    tokenizer.save_pretrained(base)
    tiny_model(tokenizer).save_pretrained(base)
    for keys, complaint in [
        ({"model_name_or_path": str(base)}, "is no chat model: its texts end in <|endoftext|>"),
        ({"choose": "reward_model"}, "go together"),
        ({"problems_per_round": 100}, "2 rounds of 100 need 200 different problems"),
        ({"tools": ["search"]}, "the search tool needs `search_index`"),
        ({"push_to_hub": True}, "every round would be pushed"),
        ({"resume_from_checkpoint": "there"}, "rounds go on by themselves"),
    ]:
        assert complaint in stops(tmp_path / "rejection", **{"model_name_or_path": start, **keys})


def test_problems_shared_out_over_ranks_get_the_tries_they_get_on_one(monkeypatch):
    tokenizer = tiny_tokenizer()
    model, ways = tiny_model(tokenizer), {"max_new_tokens": 4, "temperature": 1.0, "seed": 0}
    alone = tries(model, tokenizer, PROBLEMS, 2, **ways)
    monkeypatch.setattr(rejection, "gather_object", lambda mine: mine)
    together = []
    for rank in range(4):  # 6 problems: 1, 2, 1, 2
        monkeypatch.setattr(
            rejection, "PartialState", lambda r=rank: SimpleNamespace(process_index=r, num_processes=4)
        )
        together += tries(model, tokenizer, PROBLEMS, 2, **ways)
    assert together == alone


def test_measuring_is_practices_own_and_the_same_every_time():
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    problems = [{**problem, "answer": "1"} for problem in PROBLEMS]
    ways = {"max_new_tokens": 4, "temperature": 1.0, "seed": 0}
    numbers = measure(model, tokenizer, problems, 2, **ways)
    assert numbers == measure(model, tokenizer, problems, 2, **ways)
    assert practice.measure(model, tokenizer, problems, 2, **ways).keys() - {"ungraded"} <= numbers.keys()
