"""GRPO with our rollouts: log-probabilities as TRL has them, tools masked, exact resuming, rewards that rise."""

import json
import math
import random

import pytest
import torch
from datasets import Dataset

from crawl2chat import grpo
from crawl2chat.grpo import GRPOArguments, PractisingTrainer, check_arguments, completions, curve, seconds, token_logps
from crawl2chat.problems import TaskRows, read_problems
from tiny import tiny_model, tiny_tokenizer

PROBLEMS = read_problems([TaskRows("sums", "sums", train=12, test=4)], "train", 0)


def arguments(folder, **changes) -> GRPOArguments:
    keys = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6, "max_steps": 4}
    keys |= {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "use_cpu": True, "report_to": "none"}
    keys |= {"save_steps": 2, "logging_steps": 1, "disable_tqdm": True, "bf16": False, "temperature": 1.0}
    keys |= {"gradient_checkpointing": False}
    return GRPOArguments(output_dir=str(folder), **keys | changes)


def letters(completions, **kwargs) -> list[float]:
    """A reward that a model without a thought can earn: the share of letters."""
    texts = [completion[-1]["content"] for completion in completions]
    return [sum(map(str.isalpha, text)) / 10 for text in texts]


def trainer(folder, tools=(), model=None, reward=letters, **changes) -> PractisingTrainer:
    tokenizer = tiny_tokenizer()
    return PractisingTrainer(
        model=model or tiny_model(tokenizer),
        args=arguments(folder, **changes),
        reward_funcs=[reward],
        train_dataset=Dataset.from_list(PROBLEMS),
        eval_dataset=Dataset.from_list(PROBLEMS[:3]),
        processing_class=tokenizer,
        tools=tools,
    )


def padded(seed: int, rows: int = 7) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Rows as TRL pads them: prompts on the left, replies on the right; the last reply masked as a truncated one."""
    rng = random.Random(seed)
    prompts, replies = [rng.randint(1, 6) for _ in range(rows)], [rng.randint(1, 5) for _ in range(rows)]
    mask = torch.zeros(rows, 11, dtype=torch.long)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        mask[row, 6 - prompt : 6 + (reply if row < rows - 1 else 0)] = 1
    ids = torch.randint(10, 200, (rows, 11), generator=torch.Generator().manual_seed(seed))
    ids[2:5, :6], mask[2:5, :6] = ids[1, :6], mask[1, :6]  # several replies to one prompt
    return ids.masked_fill(mask == 0, 0), mask, 5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_entropies_and_gradients_are_those_of_trl(tmp_path, temperature):
    one = trainer(tmp_path, temperature=temperature)
    ids, mask, keep = padded(0)
    found = {}
    for lean in (True, False):
        one.lean = lean
        one.model.zero_grad()
        logps, entropies, _ = one._get_per_token_logps_and_entropies(one.model, ids, mask, keep, compute_entropy=True)
        (logps * mask[:, -keep:]).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None])
        found[lean] = ((logps * mask[:, -keep:]).detach(), (entropies * mask[:, -keep:]).detach(), gradient)
    for ours, theirs in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert found[True][0].abs().sum() > 1


def test_rows_without_an_advantage_are_left_out_of_the_gradient_and_change_nothing(tmp_path):
    one = trainer(tmp_path)
    one.current_gradient_accumulation_steps = 1
    ids, mask, keep = padded(2, rows=8)
    inputs = {"prompt_ids": ids[:, :-keep], "prompt_mask": mask[:, :-keep], "completion_ids": ids[:, -keep:]}
    inputs |= {"completion_mask": mask[:, -keep:], "num_items_in_batch": mask[:, -keep:].sum()}
    inputs["advantages"] = torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0, 2.0, -2.0, 0.0])
    found = {}
    for lean in (True, False):
        one.lean = lean
        one.model.train().zero_grad()
        one._compute_loss(one.model, inputs).backward()
        entropy = one._metrics["train"]["entropy"][-1]
        found[lean] = torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None]), entropy
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-4, atol=1e-6)
    assert found[True][0].abs().sum() > 0 and found[True][1] == pytest.approx(found[False][1], rel=1e-4)


def test_log_probabilities_are_those_of_each_row_alone(monkeypatch):
    model = tiny_model(tiny_tokenizer())
    ids, mask, keep = padded(1)
    monkeypatch.setattr(grpo, "PROMPTS", 2)
    logps, entropies = token_logps(model, ids, mask, keep, 0.9)
    for row in range(len(ids)):
        real = mask[row].bool()
        alone = (model(input_ids=ids[row : row + 1, real]).logits[0] / 0.9).log_softmax(-1)
        for column in mask[row, -keep:].nonzero()[:, 0].tolist():
            at = int(real[: 6 + column].sum())
            assert logps[row, column].item() == pytest.approx(alone[at - 1, ids[row, 6 + column]].item(), abs=1e-4)
            entropy = -(alone[at - 1].exp() * alone[at - 1]).sum().item()
            assert entropies[row, column].item() == pytest.approx(entropy, abs=1e-4)
    assert not (logps * (1 - mask[:, -keep:])).any()


def test_practice_raises_the_reward(tmp_path):
    one = trainer(tmp_path, max_steps=30, per_device_train_batch_size=16, save_strategy="no")
    one.run()
    rewards = [row["reward"] for row in one.state.log_history if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05


def test_a_run_that_goes_on_gives_the_losses_of_one_left_alone(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.run()
    first = trainer(tmp_path / "parts", save_total_limit=2)
    first.run()
    for name in ("checkpoint-4", "checkpoint-2/finished"):
        path = tmp_path / "parts" / name
        [file.unlink() for file in path.glob("*")] if path.is_dir() else path.unlink(missing_ok=True)
    (tmp_path / "parts" / "checkpoint-4").rmdir()
    second = trainer(tmp_path / "parts", save_total_limit=2)
    assert second.find_start() == 2
    second.run()
    keys = ("loss", "reward", "grad_norm", "completions/mean_length")
    logs = [[[row[key] for key in keys] for row in run.state.log_history if "loss" in row] for run in (whole, second)]
    assert logs[0] == logs[1] and len(logs[0]) == 4
    assert any(row[0] for row in logs[0])


def test_tokens_of_a_tool_bear_no_loss(tmp_path):
    tokenizer = tiny_tokenizer()
    call = [{"type": "function", "function": {"name": "look", "arguments": {"query": "a"}}}]
    turns = [PROBLEMS[0]["prompt"][0], {"role": "assistant", "content": "", "tool_calls": call}]
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    said = ids[len(prompt) : len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
    model = tiny_model(tokenizer)

    def look(query: str) -> str:
        """Look it up.

        Args:
            query: What.
        """
        return "nothing here"

    one = trainer(tmp_path, tools=[look], model=model, max_completion_length=len(said) + 4)
    forced = iter([])

    def choose(sampling, logits, uniforms):
        position = next(forced)
        return torch.full((len(logits),), said[position] if position < len(said) else tokenizer.eos_token_id)

    with pytest.MonkeyPatch.context() as patch:
        forced = iter(range(99))
        patch.setattr("crawl2chat.decoding.Sampling.choose", choose)
        prompt_ids, ids, mask, messages, *_ = one._generate([PROBLEMS[0]["prompt"]] * 4)
    assert [turn["role"] for turn in messages[0]] == ["assistant", "tool", "assistant"]
    result = [token for token, own in zip(ids[0], mask[0], strict=True) if not own]
    assert "nothing here" in tokenizer.decode(result)
    assert [token for token, own in zip(ids[0], mask[0], strict=True) if own][: len(said)] == said
    assert one._metrics["train" if one.model.training else "eval"]["tools/call_frequency"] == [1.0]


def test_a_try_without_a_verdict_moves_nothing_though_other_rewards_have_one(tmp_path):
    def graded(completions, **kwargs) -> list[float | None]:
        return [None, *(float(number) for number in range(1, len(completions)))]

    def other(completions, **kwargs) -> list[float]:
        return [9.0] * len(completions)

    one = trainer(tmp_path)
    one.reward_funcs, one.reward_func_names = [graded, other], ["graded", "other"]
    one.reward_processing_classes, one.reward_weights = [None, None], torch.ones(2)
    found = one._generate_and_score_completions([dict(PROBLEMS[0])] * 4 + [dict(PROBLEMS[1])] * 4)
    assert found["advantages"][0] == 0 and found["advantages"][1:4].sum().abs() < 1e-3
    assert found["advantages"][1] < 0 < found["advantages"][3]


def test_held_out_problems_are_tried_along_the_way(tmp_path):
    one = trainer(tmp_path, eval_strategy="steps", eval_steps=2, eval_on_start=True, save_strategy="no")
    one.run()
    rows = curve(one.state.log_history, 8)
    assert [row["step"] for row in rows] == [0, 2, 4] and [row["rollouts"] for row in rows] == [0, 16, 32]
    assert all(row["pass_at_1"] == 0 and row["mean_length"] > 0 and "wait" in row["strategies"] for row in rows)


def test_measuring_twice_gives_the_same(tmp_path):
    one = trainer(tmp_path)
    assert one.measure(PROBLEMS, 2, 1.0, 5) == one.measure(PROBLEMS, 2, 1.0, 5)
    assert one.measure(PROBLEMS, 2, 1.0, 5)["mean_length"] != one.measure(PROBLEMS, 2, 1.0, 6)["mean_length"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_p": 0.1}, "min_p needs use_vllm"),
        ({"repetition_penalty": 1.2}, "repetition_penalty needs use_vllm"),
        ({"num_iterations": 3, "save_steps": 4}, "multiple"),
        ({"use_transformers_continuous_batching": True}, "engine"),
        ({"ds3_gather_for_generation": False}, "wait for each other"),
    ],
)
def test_what_our_rollouts_do_not_do_is_refused(tmp_path, changes, said):
    with pytest.raises(SystemExit, match=said):
        check_arguments(arguments(tmp_path, **changes))


def test_seconds_are_the_log_s_means_times_their_steps():
    rows = [{"step": 5, "rollout_seconds": 1.0, "reward_seconds": 0.5, "step_time": 2.0}, {"step": 5, "eval_x": 1}]
    rows += [{"step": 7, "rollout_seconds": 2.0, "reward_seconds": 0.0, "step_time": 3.0}]
    assert seconds(rows) == {"rollout": 9.0, "reward": 2.5, "update": 4.5}


def test_a_sample_of_the_completions_is_kept(tmp_path):
    turns = [{"role": "user", "content": "1+1?"}], [{"role": "assistant", "content": "2."}]
    row = {"step": 3, "prompt": turns[0], "completion": turns[1], "correct": 1.0, "advantage": 0.5}
    (tmp_path / "completions").mkdir()
    Dataset.from_list([row] * 9).to_parquet(tmp_path / "completions" / "completions_00003.parquet")
    rows = completions(tmp_path, 2)
    said = {"step": 3, "prompt": "1+1?", "completion": "2.", "rewards": {"correct": 1.0}, "advantage": 0.5}
    assert rows == [said, said] and json.dumps(rows) and not math.isnan(rows[0]["advantage"])
