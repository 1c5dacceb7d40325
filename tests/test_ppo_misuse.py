"""PPO given what it cannot use, or what moves its numbers unseen: one clear line, or the right number."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from crawl2chat.drift import digest_weights
from crawl2chat.episodes import summary
from test_ppo import PROBLEMS, letters, reward_model, trainer
from tiny import tiny_model, tiny_tokenizer

USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
ONCE = {"max_steps": 4, "save_strategy": "no"}


def half(completions, **kwargs) -> list[float | None]:
    return [None if i % 2 else 1.0 for i in range(len(completions))]


def test_an_attentions_own_dropout_is_off(tmp_path):
    model = tiny_model(tiny_tokenizer())
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3  # a number, as from_pretrained sets it; no module
    run = trainer(tmp_path, keys={"model": model}, num_mini_batches=1, num_ppo_epochs=4, **ONCE)
    run.run()
    first = next(row for row in run.state.log_history if "loss" in row)
    assert first["val/ratio"] == pytest.approx(1, abs=1e-5) and first["policy/approxkl_avg"] < 1e-8


def test_the_best_model_is_loaded_at_the_end_policy_and_value_model(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "greater_is_better": True}
    best |= {"eval_strategy": "steps", "eval_steps": 4, "max_steps": 12}
    run, seen = trainer(tmp_path, letters, {"eval_dataset": PROBLEMS[:3]}, **best), {}

    def evaluate(*args, **kwargs) -> dict[str, float]:
        step = run.state.global_step
        seen[step] = [digest_weights(part) for part in (run.model.policy, run.model.value_model)]
        return {"eval_reward": float(step == 8)}

    run.evaluate = evaluate
    run.run()
    assert run.state.best_model_checkpoint.endswith("checkpoint-8") and len(set(map(tuple, seen.values()))) == 3
    assert [digest_weights(part) for part in (run.model.policy, run.model.value_model)] == seen[8]


def test_a_model_that_has_two_parts_is_refused(tmp_path):
    judge, policy = reward_model(), tiny_model(tiny_tokenizer())
    with pytest.raises(SystemExit, match="reward_model is value_model itself"):
        trainer(tmp_path, judge, {"value_model": judge})
    with pytest.raises(SystemExit, match="ref_model is model itself"):
        trainer(tmp_path, letters, {"model": policy, "ref_model": policy})
    adapted = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(SystemExit, match="the policy is an adapter already"):
        trainer(tmp_path, letters, {"model": adapted})


@pytest.mark.parametrize(
    "row", [{"text": "x"}, {"prompt": None}, {"prompt": []}, {"prompt": " "}, {"prompt": 3}, "hello",
            {"prompt": [USER, ASSISTANT]}, {"prompt": [{"role": "user", "content": None}]}],
)  # fmt: skip
def test_a_row_that_asks_for_no_reply_is_named(tmp_path, row):
    with pytest.raises(SystemExit, match="train_dataset: row 1 asks for no reply"):
        trainer(tmp_path, letters, {"train_dataset": [{"prompt": "Who?"}, row]})


@pytest.mark.parametrize("rows, name", [([], "eval_dataset"), ({"few": PROBLEMS[:2], "none": []}, "none")])
def test_an_empty_evaluation_set_is_refused(tmp_path, rows, name):
    with pytest.raises(SystemExit, match=f"{name} has no rows for eval_strategy steps"):
        trainer(tmp_path, letters, {"eval_dataset": rows}, eval_strategy="steps", eval_steps=4)


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_reward_gives_one_value_a_reply(tmp_path, extra):
    def off(completions, **kwargs) -> list[float]:
        return [1.0] * (len(completions) + extra)

    with pytest.raises(SystemExit, match=f"reward off gave {8 + extra} values for 8 replies"):
        trainer(tmp_path, off)._roll_out(0)


def test_weights_are_numbers_and_names_are_one_judges(tmp_path):
    with pytest.raises(SystemExit, match="must be finite"):
        trainer(tmp_path, letters, reward_weights=[math.nan])
    with pytest.raises(SystemExit, match="letters is a reward and one of eval_funcs"):
        trainer(tmp_path, letters, {"eval_funcs": [letters]})


def test_a_batch_without_a_single_verdict_moves_nothing(tmp_path):
    asked = []

    def second_fails(completions, **kwargs) -> list[float | None]:
        asked.append(len(completions))
        return [None] * len(completions) if len(asked) == 2 else letters(completions)

    run = trainer(tmp_path, second_fails, max_steps=12, save_strategy="no")
    run.run()
    rows = [row for row in run.state.log_history if "loss" in row]
    assert len(rows) == 12 and [row["loss"] for row in rows[4:8]] == [0.0] * 4 and rows[8]["loss"] != 0


def test_a_reply_without_a_verdict_counts_in_no_kl(tmp_path):
    run = trainer(tmp_path, half)
    with torch.no_grad():
        for parameter in run.model.policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    found = run.episodes(PROBLEMS[:8], seed=1)
    graded = [episode.kl for episode in found if episode.score is not None]
    assert len(graded) == 4 and summary(found)["kl"] == pytest.approx(sum(graded) / 4)


def test_rows_of_several_tasks_have_columns_of_their_own(tmp_path):
    seen = {}

    def look(completions, answer, **kwargs) -> list[float]:
        seen["answers"] = answer
        return [0.0] * len(completions)

    rows = [{"prompt": "Who?", "answer": "a"}, {"prompt": "What?"}]
    trainer(tmp_path, look, {"train_dataset": rows})._roll_out(0)
    assert sorted(map(str, seen["answers"])) == ["None"] * 4 + ["a"] * 4


def test_a_reward_model_may_be_a_folder_with_the_policys_tokenizer(tmp_path):
    reward_model().save_pretrained(tmp_path / "judge")
    tiny_tokenizer().save_pretrained(tmp_path / "judge")
    run = trainer(tmp_path / "ppo", str(tmp_path / "judge"))
    assert list(run.rewards) == ["judge"]
    other = tiny_tokenizer()
    other.add_tokens(["<one>"])
    other.save_pretrained(tmp_path / "judge")
    with pytest.raises(SystemExit, match="tokens"):
        trainer(tmp_path / "ppo", str(tmp_path / "judge"))
