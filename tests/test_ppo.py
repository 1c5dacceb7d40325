"""PPO on text: it learns, resumes exactly, masks tools, keeps no reference with LoRA, and refuses what cannot be."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification

from crawl2chat.advantages import policy_losses, token_rewards, value_losses
from crawl2chat.drift import digest_weights
from crawl2chat.grpo import completions
from crawl2chat.logps import token_logps, token_values
from crawl2chat.model import load_model
from crawl2chat.policy_and_value import begin_value_model
from crawl2chat.ppo import PPOConfig, PPOTrainer
from crawl2chat.problems import TaskRows, read_problems
from crawl2chat.proxy_gold import curve, headline, looks, measured, p_value
from tiny import tiny_model, tiny_tokenizer

PROBLEMS = read_problems([TaskRows("sums", "sums", train=12, test=4)], "train", 0)


def letters(completions, **kwargs) -> list[float]:
    """A reward that a model without a thought can earn: the share of letters."""
    return [sum(map(str.isalpha, completion[-1]["content"])) / 10 for completion in completions]


def constant(completions, **kwargs) -> list[float]:
    return [0.0] * len(completions)


def arguments(folder, **changes) -> PPOConfig:
    keys = {"per_device_train_batch_size": 4, "num_mini_batches": 2, "num_ppo_epochs": 2, "max_steps": 8}
    keys |= {"response_length": 6, "temperature": 1.0, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    keys |= {"save_steps": 4, "logging_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return PPOConfig(output_dir=str(folder), **keys | changes)


def trainer(folder, reward_funcs=letters, keys=None, **changes) -> PPOTrainer:
    tokenizer = tiny_tokenizer()
    given = {"model": None, "train_dataset": PROBLEMS, **(keys or {})}
    given["model"] = given["model"] or tiny_model(tokenizer)
    args = arguments(folder, **changes)
    return PPOTrainer(reward_funcs=reward_funcs, args=args, processing_class=tokenizer, **given)


def reward_model(seed: int = 3, labels: int = 1):
    """A sequence classifier whose scores are far from 0."""
    model = begin_value_model(tiny_model(tiny_tokenizer(), seed), [])
    config = model.config
    config.num_labels = labels
    found = AutoModelForSequenceClassification.from_config(config)
    found.base_model.load_state_dict(model.base_model.state_dict())
    torch.nn.init.normal_(found.score.weight, std=1.0, generator=torch.Generator().manual_seed(seed))
    return found.eval()


def logged(run: PPOTrainer, *keys: str) -> list[list[float]]:
    return [[row[key] for key in keys] for row in run.state.log_history if "loss" in row]


# -- log-probabilities and values


def test_log_probabilities_and_values_are_those_of_each_row_alone():
    policy, value_model = tiny_model(tiny_tokenizer()), reward_model()
    draw = torch.Generator().manual_seed(0)
    ids, lengths = torch.randint(10, 200, (40, 12), generator=draw), torch.randint(3, 13, (40,), generator=draw)
    wanted = (torch.rand(40, 12, generator=draw) < 0.5) & (torch.arange(12) < lengths[:, None])
    wanted[:, 0] = wanted[7] = False
    logps, entropies = token_logps(policy, ids, lengths, wanted, 0.7)
    values, found = token_values(value_model, ids, lengths, wanted), 0
    for row in range(40):
        alone = ids[row : row + 1, : lengths[row]]
        own = (policy(input_ids=alone).logits[0] / 0.7).log_softmax(-1)
        states = value_model.base_model(alone).last_hidden_state[0]
        for at in wanted[row].nonzero()[:, 0].tolist():
            assert logps[found].item() == pytest.approx(own[at - 1, alone[0, at]].item(), abs=1e-4)
            assert entropies[found].item() == pytest.approx(-(own.exp() * own).sum(-1)[at - 1].item(), abs=1e-4)
            assert values[found].item() == pytest.approx(value_model.score(states[at - 1]).item(), abs=1e-4)
            found += 1
    assert found == len(logps)


def gradients(run: PPOTrainer, parts: list[torch.Tensor]) -> tuple[float, torch.Tensor]:
    """The loss of a minibatch cut into these micro-batches, as the Trainer adds it up, and its gradients."""
    run.args.gradient_accumulation_steps = len(parts)
    run.model.zero_grad()
    count = run.batch.mask[torch.cat(parts)].sum()
    loss = sum(run.compute_loss(run.model, {"rows": part, "count": count}) for part in parts) / len(parts)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


def perturbed(run: PPOTrainer) -> None:
    """Weights a step away from those that the rollouts came from."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)


def test_padding_order_and_the_cut_into_micro_batches_change_nothing(tmp_path):
    run = trainer(tmp_path)
    run.batch = run._roll_out(0)
    perturbed(run)
    rows = torch.arange(8)
    loss, expected = gradients(run, [rows])
    assert abs(loss) > 1e-3 and expected.abs().max() > 1e-3
    shuffled = rows[torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    for parts in ([shuffled], list(rows.split(2)), list(shuffled.split(1))):
        other, found = gradients(run, parts)
        assert other == pytest.approx(loss, abs=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    batch = run.batch
    batch.ids = torch.nn.functional.pad(batch.ids, (0, 5), value=77)  # what stands in the padding is seen by no token
    batch.wanted = torch.nn.functional.pad(batch.wanted, (0, 5))
    assert gradients(run, [rows])[0] == pytest.approx(loss, abs=1e-5)


def test_the_loss_is_that_of_a_loop_over_single_replies(tmp_path):
    run = trainer(tmp_path, vf_coef=0.3)
    run.batch = batch = run._roll_out(0)
    perturbed(run)
    total, count = 0.0, 0
    for row in range(8):
        prompt = int(batch.lengths[row] - batch.wanted[row].sum())
        ids = batch.ids[row : row + 1, : batch.lengths[row]]
        logps = run.model.policy(input_ids=ids).logits[0].log_softmax(-1)
        states = run.model.value_model.base_model(ids).last_hidden_state[0]
        for action, at in enumerate(range(prompt, ids.shape[1])):
            old, advantage, was, wanted = (
                part[row, action] for part in (batch.logps, batch.advantages, batch.values, batch.returns)
            )
            total += policy_losses(logps[at - 1, ids[0, at]], old, advantage, 0.2)[0].item()
            value = run.model.value_model.score(states[at - 1])[0]
            total, count = total + 0.3 * value_losses(value, was, wanted, 0.2)[0].item(), count + 1
    assert gradients(run, [torch.arange(8)])[0] == pytest.approx(total / count, abs=1e-4)


# -- training


def test_a_tiny_model_learns_a_simple_reward(tmp_path):
    changes = {"per_device_train_batch_size": 16, "num_mini_batches": 1, "max_steps": 80, "save_strategy": "no"}
    run = trainer(tmp_path, kl_coef=0.0, **changes)
    run.run()
    scores = [row["objective/scores"] for row in run.state.log_history if "objective/scores" in row]
    assert len(scores) == 40
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.1


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_one_line_makes_it_learn_from_comparisons_without_a_value_model(tmp_path, estimator):
    run = trainer(tmp_path, advantage_estimator=estimator, num_generations=4, max_steps=40, save_strategy="no")
    run.run()
    rewards = [row["reward"] for row in run.state.log_history if "reward" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1, rewards
    assert run.model.value_model is None and "loss/value_avg" not in run.state.log_history[-2]
    asked = [row["prompt"] for row in run._asked(0)]
    assert all(asked[i : i + 4] == [asked[i]] * 4 for i in (0, 4)) and asked[0] != asked[4]
    run.save_model()
    assert not (tmp_path / "value_model").exists()
    assert digest_weights(load_model(str(tmp_path))) == digest_weights(run.model.policy)


def test_the_least_convinced_of_several_rewards_decides(tmp_path):
    run = trainer(tmp_path, [letters, constant], reward_aggregation="min", reward_weights=[1.0, 0.5])
    for episode in run.episodes(PROBLEMS, 0):
        assert episode.score == min(episode.rewards["letters"], 0.0)


def test_the_leash_alone_pulls_a_policy_back_to_its_reference(tmp_path):
    reference, policy = tiny_model(tiny_tokenizer()), tiny_model(tiny_tokenizer())
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    changes = {"per_device_train_batch_size": 256, "num_mini_batches": 1, "max_steps": 24, "learning_rate": 3e-3}
    keys = {"model": policy, "ref_model": reference}
    run = trainer(tmp_path, constant, keys, kl_coef=1.0, response_length=4, save_strategy="no", **changes)
    run.run()
    away = [row["objective/kl"] for row in run.state.log_history if "objective/kl" in row]
    assert away[0] > 1 and away[-1] < 0.75 * away[0]


def test_the_policy_begins_as_its_reference_and_the_first_update_at_ratio_1(tmp_path):
    run = trainer(tmp_path, max_steps=4, save_strategy="no", num_mini_batches=1, num_ppo_epochs=4)
    run.run()
    first, second, *_ = [row for row in run.state.log_history if "loss" in row]
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5) and first["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["policy/clipfrac_avg"] == 0 and second["policy/approxkl_avg"] > 0
    names = "objective/kl objective/entropy objective/non_score_reward objective/rlhf_reward objective/scores"
    names += " policy/approxkl_avg policy/clipfrac_avg policy/entropy_avg loss/policy_avg loss/value_avg"
    names += " val/clipfrac_avg val/ratio val/num_eos_tokens eps episode reward kl entropy completions/mean_length"
    assert set(names.split()) <= set(first)


def test_a_run_that_goes_on_gives_the_numbers_of_one_left_alone(tmp_path):
    changes = {"kl_target": 0.01, "kl_coef": 0.5, "max_steps": 12, "kl_gain": 1.0}
    whole = trainer(tmp_path / "whole", **changes)
    whole.run()
    first = trainer(tmp_path / "parts", **changes)
    first.run()
    for step in (8, 12):
        shutil.rmtree(tmp_path / "parts" / f"checkpoint-{step}")
    second = trainer(tmp_path / "parts", **changes)
    assert second.find_start() == 4
    second.run()
    keys = ("loss", "grad_norm", "policy/approxkl_avg", "loss/value_avg")
    assert logged(whole, *keys) == logged(second, *keys) and len(logged(whole, *keys)) == 12
    for key in ("objective/kl", "objective/scores", "objective/kl_coef"):
        found = [[row[key] for row in run.state.log_history if key in row] for run in (whole, second)]
        assert found[0] == found[1] and len(set(found[0])) == 3, key
    assert digest_weights(whole.model) == digest_weights(second.model)


def test_every_prompt_is_asked_once_before_one_comes_again(tmp_path):
    run = trainer(tmp_path)
    asked = [json.dumps(row["prompt"]) for number in range(3) for row in run._asked(number)]
    assert len(asked) == 24 and len(set(asked[:12])) == len(set(asked[12:])) == 12
    assert asked[:12] != asked[12:]


def test_gradient_checkpointing_changes_no_loss(tmp_path):
    found = []
    for on in (False, True):
        run = trainer(tmp_path / str(on), max_steps=4, save_strategy="no", gradient_checkpointing=on)
        run.run()
        found.append([row[0] for row in logged(run, "loss")])
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_the_policy_is_saved_as_the_model_with_the_value_model_beside_it(tmp_path):
    run = trainer(tmp_path, max_steps=4)
    run.run()
    run.save_model()
    assert digest_weights(load_model(tmp_path)) == digest_weights(run.model.policy)
    value_model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value_model")
    assert digest_weights(value_model) == digest_weights(run.model.value_model)


# -- rewards


def test_rewards_are_weighted_and_a_reply_that_does_not_end_pays(tmp_path):
    def ones(completions, **kwargs) -> list[float]:
        return [1.0] * len(completions)

    judge = reward_model()
    run = trainer(tmp_path, [judge, ones], reward_weights=[2.0, 0.5], missing_eos_penalty=7.0, response_length=100)
    episodes = run.episodes(PROBLEMS, seed=1)
    assert {episode.ended for episode in episodes} == {True, False}
    for episode in episodes:
        expected = 2 * episode.rewards["reward_model"] + 0.5 - 7 * (not episode.ended)
        assert episode.score == pytest.approx(expected) and episode.rewards["ones"] == 1
    assert len({episode.rewards["reward_model"] for episode in episodes}) > 3


def test_a_reply_without_a_verdict_moves_nothing(tmp_path):
    def half(completions, **kwargs) -> list[float | None]:
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    run = trainer(tmp_path, [half, letters])
    batch = run._roll_out(0)
    assert [episode.score is None for episode in batch.episodes] == [False, True] * 4
    assert not batch.mask[1::2].any() and not batch.wanted[1::2].any() and batch.mask[::2].any(1).all()
    assert batch.advantages[1::2].abs().sum() == 0 and run._sums["ungraded"].tolist() == [4, 8]


def test_a_reward_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(SystemExit, match="reward broken is nan for 8 of 8 replies"):

        def broken(completions, **kwargs) -> list[float]:
            return [float("nan")] * len(completions)

        trainer(tmp_path, broken)._roll_out(0)


def test_tokens_of_a_tool_are_no_actions_and_the_score_lands_on_the_last_token_the_policy_wrote(tmp_path, monkeypatch):
    tokenizer, turns = tiny_tokenizer(), [PROBLEMS[0]["prompt"][0]]
    call = [{"type": "function", "function": {"name": "look", "arguments": {"query": "a"}}}]
    turns.append({"role": "assistant", "content": "", "tool_calls": call})
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    said = ids[len(prompt) : len(ids) - ids[::-1].index(tokenizer.eos_token_id)]

    def look(query: str) -> str:
        """Look it up.

        Args:
            query: What.
        """
        return "nothing here"

    def choose(sampling, logits, uniforms):
        position = next(forced)
        return torch.full((len(logits),), said[position] if position < len(said) else tokenizer.eos_token_id)

    forced = iter(range(99))
    monkeypatch.setattr("crawl2chat.decoding.Sampling.choose", choose)
    keys = {"tools": [look], "train_dataset": PROBLEMS[:1]}
    changes = {"response_length": len(said) + 4, "num_mini_batches": 1, "kl_coef": 0.0, "lam": 1.0}
    run = trainer(tmp_path, lambda completions, **kwargs: [3.0] * len(completions), keys, **changes)
    batch = run._roll_out(0)
    assert batch.mask.sum(1).tolist() == [len(said) + 1] * 4
    row, wanted = batch.ids[0], batch.wanted[0]
    assert row[wanted].tolist() == [*said, tokenizer.eos_token_id]
    rest = [token for token, own in zip(row[len(prompt) :], wanted[len(prompt) :], strict=True) if not own]
    assert "nothing here" in tokenizer.decode(rest)
    assert batch.lengths[0] == len(row)
    torch.testing.assert_close(batch.returns, torch.full_like(batch.returns, 3.0))  # lambda 1: the score, everywhere
    rewards = token_rewards(torch.zeros(batch.mask.shape), torch.full((4,), 3.0), batch.mask, 0.0)
    assert rewards.nonzero()[:, 1].tolist() == [len(said)] * 4


def test_the_gold_reward_looks_on_and_is_never_learned_from(tmp_path):
    asked = []

    def gold(completions, **kwargs) -> list[float]:
        asked.append(len(completions))
        return [100.0] * len(completions)

    keys = {"eval_dataset": {"few": PROBLEMS[:3], "more": PROBLEMS[:5]}, "eval_funcs": [gold]}
    run = trainer(tmp_path, letters, keys, eval_strategy="steps", eval_steps=4, save_strategy="no")
    run.run()
    assert asked == [3, 5] * 2  # and never a batch's 8
    assert all(row["objective/scores"] < 50 for row in run.state.log_history if "objective/scores" in row)
    rows = [row for row in run.state.log_history if "eval_few_reward" in row]
    assert [row["step"] for row in rows] == [4, 8]
    for row in rows:
        assert row["eval_few_rewards/gold"] == row["eval_more_rewards/gold"] == 100 and row["eval_more_reward"] < 50
        assert {"eval_few_kl", "eval_more_kl", "eval_few_length", "eval_more_ended"} <= set(row)


def test_the_table_of_completions_has_trls_form(tmp_path):
    run = trainer(tmp_path, max_steps=4, log_completions=True, logging_steps=4)
    run.run()
    rows = completions(tmp_path, 8)
    assert len(rows) == 8 and {row["step"] for row in rows} == {4}
    assert set(rows[0]) == {"step", "prompt", "completion", "rewards", "advantage"} and "letters" in rows[0]["rewards"]


# -- LoRA


def test_lora_keeps_no_reference_and_one_copy_of_the_reward_model(tmp_path):
    judge, policy = reward_model(), tiny_model(tiny_tokenizer())
    before, body = digest_weights(judge), digest_weights(policy)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    run = trainer(tmp_path, judge, {"model": policy, "peft_config": lora}, max_steps=8)
    assert run.ref_model is None and run.model.value_model.get_base_model() is judge
    scores = [episode.rewards["reward_model"] for episode in run.episodes(PROBLEMS, seed=1)]
    run.run()
    rows = [row for row in run.state.log_history if "objective/kl" in row]
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5) and abs(rows[-1]["objective/kl"]) > 1e-4
    trained = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name or "modules_to_save" in name for name in trained)
    with run.model.policy.disable_adapter(), run.model.value_model.disable_adapter():
        own = trainer(tmp_path / "own", reward_model(), max_steps=4).episodes(PROBLEMS, seed=1)
        assert [episode.rewards["reward_model"] for episode in own] == pytest.approx(scores, abs=1e-4)
    run.save_model()
    assert digest_weights(reward_model()) == before and digest_weights(tiny_model(tiny_tokenizer())) == body
    assert (tmp_path / "adapter_model.safetensors").is_file() and (tmp_path / "value_model").is_dir()


def test_lora_goes_on_with_the_numbers_of_a_run_left_alone(tmp_path):
    def run_in(folder) -> PPOTrainer:
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        return trainer(folder, reward_model(), {"peft_config": lora})

    whole, first = run_in(tmp_path / "whole"), run_in(tmp_path / "parts")
    whole.run()
    first.run()
    shutil.rmtree(tmp_path / "parts" / "checkpoint-8")
    second = run_in(tmp_path / "parts")
    second.run()
    assert logged(whole, "loss", "grad_norm") == logged(second, "loss", "grad_norm")


# -- refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"save_steps": 6}, "save_steps 6 must be a multiple"),
        ({"max_steps": 6}, "max_steps 6 must be a multiple of a batch's 4 steps"),
        ({"total_episodes": 64}, "total_episodes 64 and max_steps 8"),
        ({"advantage_estimator": "rloo"}, "rloo compares replies to one prompt: num_generations must be 2 or more"),
        ({"num_generations": 3}, "batch of 8 replies must hold whole groups of num_generations 3"),
        ({"reward_weights": [1.0, 2.0]}, "2 reward_weights for 1 rewards"),
        ({"response_length": 250}, r"prompt \d+ has \d+ tokens; with response_length 250 .* context of 256"),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(tmp_path, changes, said):
    with pytest.raises(SystemExit, match=said):
        trainer(tmp_path, **changes)


def test_a_reward_model_that_does_not_fit_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(SystemExit, match="has 2 labels; a reward or value model has 1"):
        trainer(tmp_path, reward_model(labels=2))
    other = tiny_tokenizer()
    other.add_tokens(["<one>", "<two>"])
    size = len(tiny_tokenizer())
    with pytest.raises(SystemExit, match=f"its tokenizer has {size + 2} tokens and the policy's {size}"):
        trainer(tmp_path, reward_model(), {"reward_processing_classes": [other]})


def test_episodes_in_all_are_whole_batches(tmp_path):
    run = trainer(tmp_path, total_episodes=20, max_steps=-1)  # 8 a batch: 3 batches of 4 steps
    assert run.args.max_steps == 12
    assert trainer(tmp_path, max_steps=-1, num_train_epochs=2).args.max_steps == 12


# -- before and after


def test_gains_are_paired_over_prompts(tmp_path):
    assert p_value(torch.ones(20).numpy()) == pytest.approx(1e-5)
    assert p_value(torch.tensor([1.0, -1.0] * 10).numpy()) == 1
    # of 2^4 patterns of signs two are as extreme
    assert p_value(torch.tensor([1.0, 2.0, 3.0, 4.0]).numpy()) == pytest.approx(2 / 16, abs=0.01)
    run = trainer(tmp_path, letters, {"eval_funcs": [gold]})
    before = run.episodes(PROBLEMS[:4] * 1, seed=1)
    after = run.episodes(PROBLEMS[:4], seed=1)
    for i, episode in enumerate(after):
        episode.rewards["gold"] += i + 1
    before[3].rewards["gold"] = None
    numbers = measured(before, after, 1)
    assert numbers["gold_gain"] == pytest.approx(2) and numbers["proxy_gain"] == 0 and numbers["proxy_p_value"] == 1
    assert numbers["length_before"] == numbers["length_after"] and "gold" in headline(numbers)
    assert looks(before, after, 2)[1]["after"]["gold"] == after[2].rewards["gold"]


def gold(completions, **kwargs) -> list[float]:
    return [1.0] * len(completions)


def test_the_curve_has_a_row_an_evaluation(tmp_path):
    keys = {"eval_dataset": PROBLEMS[:3], "eval_funcs": [gold]}
    changes = {"eval_strategy": "steps", "eval_on_start": True, "eval_steps": 4, "save_strategy": "no"}
    run = trainer(tmp_path, letters, keys, **changes)
    run.run()
    rows = curve(run.state.log_history, run.steps_a_batch, run.episodes_a_batch)
    assert [row["step"] for row in rows] == [0, 4, 8] and [row["episodes"] for row in rows] == [0, 8, 16]
    assert all(set(row) == {"step", "episodes", "seconds", "kl", "proxy", "gold", "length"} for row in rows)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5) and json.dumps(rows)
