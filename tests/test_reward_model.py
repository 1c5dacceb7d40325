"""A reward model: learned from pairs, safe to kill, its score at the last real token whatever the batch."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel
from trl import ModelConfig, RewardTrainer

from crawl2chat import reward_model
from crawl2chat.protocol import IM_END
from crawl2chat.reward_model import (
    RewardArguments,
    RewardModelTrainer,
    adapter,
    begin,
    by_prompt,
    check_arguments,
    check_tokenizer,
    encode,
    encode_pairs,
    load_reward_model,
    open_reward_model,
    read_pairs,
    score,
    score_ids,
)
from tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WORDS = "Paris Tokyo capital letters word help small assistant today hello".split()


def say(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def pair(number: int, chosen: str, rejected: str, distance: int | None = 1) -> dict:
    prompt = say("user", f"Write about {WORDS[number % len(WORDS)]} {number}.")
    replies = {"chosen": say("assistant", chosen), "rejected": say("assistant", rejected)}
    return {"prompt": prompt, **replies, "rank_distance": distance}


def verses(count: int, first: int = 0) -> list[dict]:
    """Pairs of which the chosen reply ends as it began, of the same length as the other."""
    rows = []
    for i in range(first, first + count):
        one, two, three = (WORDS[(i * k + k) % len(WORDS)] for k in (1, 3, 7))
        other = two if two != one else WORDS[(i + 5) % len(WORDS)]
        rows.append(pair(i, f"{one} {three} hello", f"{other} {three} sorry", 1 + i % 4))
    return rows


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    TOKENIZER.save_pretrained(folder)
    tiny_model(TOKENIZER).save_pretrained(folder)
    return folder


def arguments(folder, **changes) -> RewardArguments:
    keys = {"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 3e-3, "save_steps": 2, "seed": 0}
    keys |= {"logging_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "bf16": False}
    return RewardArguments(
        output_dir=str(folder), **keys | {"gradient_checkpointing": False, "max_length": 64} | changes
    )


def trainer(folder, chat, rows=None, peft_config=None, **changes) -> RewardModelTrainer:
    pairs, _ = encode_pairs(rows or verses(24), TOKENIZER, 64)
    torch.manual_seed(0)
    return RewardModelTrainer(
        model=begin(chat),
        args=arguments(folder, **changes),
        train_dataset=Dataset.from_list([{key: row[key] for key in ("chosen_ids", "rejected_ids")} for row in pairs]),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def classifier(folder, labels: int = 1, tokenizer=TOKENIZER, tokens: int = 0):
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokens or len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_labels=labels, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    return model


# -- the score


def test_a_conversation_ends_with_the_token_that_closes_its_last_turn():
    ids = encode(TOKENIZER, [*say("user", "Hi!"), *say("assistant", "Hello!")])
    assert TOKENIZER.decode(ids).endswith(f"Hello!{IM_END}") and ids[-1] == TOKENIZER.eos_token_id
    prompt = TOKENIZER.apply_chat_template(say("user", "Hi!"), add_generation_prompt=True, return_dict=False)
    written = TOKENIZER("Hello!", add_special_tokens=False)["input_ids"]
    assert ids == [*prompt, *written, TOKENIZER.eos_token_id], "a rollout's own ids"


def test_the_score_is_taken_at_the_last_real_token(tmp_path):
    model = classifier(tmp_path).eval()
    rows = [encode(TOKENIZER, [*say("user", "Hi!"), *say("assistant", "so " * n)]) for n in range(5)]
    body: LlamaModel = model.model
    for row, found in zip(rows, score_ids(model, rows, 5), strict=True):
        with torch.no_grad():
            last = body(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
            assert found == pytest.approx((model.score.weight @ last).item(), abs=1e-5)


def test_scores_depend_neither_on_padding_nor_batch_nor_order(tmp_path):
    model = classifier(tmp_path).eval()
    talks = [[*say("user", "Hi!"), *say("assistant", "so " * (n % 7) + WORDS[n])] for n in range(10)]
    alone = score(model, TOKENIZER, talks, 1)
    assert score(model, TOKENIZER, talks, 4) == pytest.approx(alone, abs=1e-5) and len(set(alone)) == 10
    assert score(model, TOKENIZER, talks[::-1], 10) == pytest.approx(alone[::-1], abs=1e-5)
    assert score(model, TOKENIZER, [], 4) == []


def test_trl_trains_the_very_scores_that_are_read_later(tmp_path, chat):
    one = trainer(tmp_path, chat)
    rows = [one.train_dataset[i] for i in range(6)]
    batch = one.data_collator(rows)
    loss = one.compute_loss(one.model, dict(batch)).item()
    sides = [score_ids(one.model, [row[key] for row in rows], 3) for key in ("chosen_ids", "rejected_ids")]
    margins = torch.tensor(sides[0]) - torch.tensor(sides[1])
    assert loss == pytest.approx(-torch.nn.functional.logsigmoid(margins).mean().item(), abs=1e-5)


def test_rows_that_cannot_be_scored_are_refused_by_number(tmp_path):
    model = classifier(tmp_path)
    with pytest.raises(ValueError, match="row 1 has 65 tokens, the reward model's context 64"):
        score_ids(model, [[5, 6], [7] * 65], 2)
    with pytest.raises(ValueError, match="row 0 is empty or ends in the padding token"):
        score_ids(model, [[5, TOKENIZER.pad_token_id]], 2)


def test_a_tokenizer_that_pads_with_the_end_of_a_turn_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = IM_END
    with pytest.raises(SystemExit, match=r"padding token <\|im_end\|> closes the turns too"):
        check_tokenizer(tokenizer, "here")


# -- pairs


def test_pairs_that_teach_nothing_are_dropped_and_counted():
    rows = [*verses(3), pair(7, "same", "same"), pair(8, "long " * 60, "short"), pair(9, "one", "two")]
    kept, dropped = encode_pairs(rows, TOKENIZER, 64, without=[rows[-1]])
    assert len(kept) == 3 and dropped == {"identical": 1, "too_long": 1, "held_out": 1}
    assert kept[0]["chosen_ids"] == encode(TOKENIZER, [*rows[0]["prompt"], *rows[0]["chosen"]])


def test_identical_pairs_alone_are_an_error():
    with pytest.raises(SystemExit, match="none of 3 pairs is left to learn from: 3 identical"):
        encode_pairs([pair(i, "same", "same") for i in range(3)], TOKENIZER, 64)


def test_pairs_are_read_with_and_without_a_prompt_of_their_own(tmp_path):
    whole = pair(0, "good", "bad")
    implicit = {side: [*whole["prompt"], *whole[side]] for side in ("chosen", "rejected")}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (whole, implicit)))
    with pytest.raises(SystemExit, match=r"test.jsonl: no such file; run scripts/preferences.py first"):
        read_pairs(str(tmp_path), "test")
    rows = read_pairs(str(tmp_path), "train")
    assert rows == [whole, {**whole, "rank_distance": None}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "good", "rejected": "bad"}, "row 1: `chosen` and `rejected` must be lists of messages"),
        ({**pair(0, "a", "b"), "rejected": say("robot", "b")}, "row 1: 'robot' is not a role"),
        ({"rejected": say("assistant", "b")}, "no key 'chosen'"),
    ],
)
def test_a_row_that_is_no_pair_is_one_line(tmp_path, row, said):
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(SystemExit, match=said):
        read_pairs(str(tmp_path), "test")


# -- training


def test_training_tells_good_from_bad(tmp_path, chat):
    one = trainer(tmp_path, chat, max_steps=25, save_strategy="no", per_device_train_batch_size=8)
    one.run()
    rows, _ = encode_pairs(verses(40, first=100), TOKENIZER, 64)
    sides = [score_ids(one.model, [row[key] for row in rows], 16) for key in ("chosen_ids", "rejected_ids")]
    assert sum(a > b for a, b in zip(*sides, strict=True)) >= 36


def test_a_run_that_goes_on_gives_the_losses_of_one_left_alone(tmp_path, chat):
    whole = trainer(tmp_path / "whole", chat)
    whole.run()
    first = trainer(tmp_path / "parts", chat, save_total_limit=2)
    first.run()
    for name in ("checkpoint-4", "checkpoint-2/finished"):
        path = tmp_path / "parts" / name
        [file.unlink() for file in path.glob("*")] if path.is_dir() else path.unlink(missing_ok=True)
    (tmp_path / "parts" / "checkpoint-4").rmdir()
    second = trainer(tmp_path / "parts", chat, save_total_limit=2)
    assert second.find_start() == 2
    second.run()
    logs = [[(r["loss"], r["grad_norm"]) for r in run.state.log_history if "loss" in r] for run in (whole, second)]
    assert logs[0] == logs[1] and len(logs[0]) == 4


def test_four_batches_of_one_pair_are_one_batch_of_four(tmp_path, chat):
    losses = []
    for batch, accumulation in ((4, 1), (1, 4)):
        ways = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        one = trainer(tmp_path / str(batch), chat, save_strategy="no", **ways)
        one.run()
        losses.append([(row["loss"], row["grad_norm"]) for row in one.state.log_history if "loss" in row])
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_a_reply_in_several_pairs_is_read_once_and_nothing_else_changes(tmp_path, chat, monkeypatch):
    words = ["hello", "today small", "letters in a word", "capital"]
    rows = [pair(3, one, other) for i, one in enumerate(words) for other in words[i + 1 :]]
    one = trainer(tmp_path, chat, rows)
    found, read = {}, []
    one.model.register_forward_hook(
        lambda model, args, kwargs, out: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for kind in (RewardModelTrainer, RewardTrainer):
        monkeypatch.setattr(RewardModelTrainer, "compute_loss", kind.compute_loss)
        one.model.zero_grad()
        batch = one.data_collator(list(one.train_dataset))
        loss, outputs = one.compute_loss(one.model, batch, return_outputs=True)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None])
        found[kind] = (loss.detach(), outputs.logits.detach(), gradient)
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert read == [4, 12]


def test_the_pairs_of_a_prompt_stand_side_by_side():
    rows = [pair(i % 5, f"good {i}", "bad") for i in range(20)]
    ordered = by_prompt(rows, 0)
    asked = [row["prompt"][0]["content"] for row in ordered]
    assert sum(a != b for a, b in zip(asked, asked[1:], strict=False)) == 4
    assert sorted(map(str, ordered)) == sorted(map(str, rows)) and by_prompt(rows, 0) == ordered != by_prompt(rows, 1)


@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "v_proj"]])
def test_an_adapter_trains_its_head_and_gives_the_same_scores_when_merged(tmp_path, chat, modules):
    lora = ModelConfig(use_peft=True, lora_r=2, lora_target_modules=modules)
    one = trainer(tmp_path / "adapter", chat, peft_config=adapter(lora), save_strategy="no")
    before = {name: value.detach().clone() for name, value in one.model.named_parameters() if value.requires_grad}
    assert any("score" in name for name in before) and not any("embed" in name for name in before)
    one.run()
    after = dict(one.model.named_parameters())
    assert any("score" in name and not torch.equal(after[name], value) for name, value in before.items())
    one.save_model()
    assert any("score" in name for name in load_file(tmp_path / "adapter/adapter_model.safetensors"))
    talks = [[*row["prompt"], *row["chosen"]] for row in verses(5)]
    merged, tokenizer = load_reward_model(tmp_path / "adapter", TOKENIZER)
    assert score(merged, tokenizer, talks, 5) == pytest.approx(score(one.model, TOKENIZER, talks, 5), abs=1e-4)


@pytest.mark.parametrize("key", ["chat_template_path", "eos_token", "model_init_kwargs"])
def test_keys_that_would_change_the_tokens_are_refused(tmp_path, key):
    value = {"a": 1} if key == "model_init_kwargs" else "x"
    with pytest.raises(SystemExit, match=f"{key} does nothing here"):
        check_arguments(arguments(tmp_path, **{key: value}))


# -- what is no reward model


def test_a_chat_model_is_no_reward_model_and_an_adapter_no_start(tmp_path, chat):
    with pytest.raises(SystemExit, match="is no reward model, its weights lack score.weight"):
        load_reward_model(chat)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit, match="is an adapter; merge it"):
        begin(tmp_path)
    with pytest.raises(SystemExit, match="no such folder"):
        begin("output/nothing/sft")


def test_two_labels_and_another_tokenizer_are_refused_with_both_numbers(tmp_path):
    classifier(tmp_path / "two", labels=2)
    with pytest.raises(SystemExit, match="has 2 labels; a reward model has 1"):
        load_reward_model(tmp_path / "two")
    classifier(tmp_path / "one")
    load_reward_model(tmp_path / "one", TOKENIZER)
    other = tiny_tokenizer()
    other.add_tokens(["extra"])
    sizes = f"has {len(TOKENIZER):,} tokens and the policy's {len(other):,}"
    with pytest.raises(SystemExit, match=sizes):
        load_reward_model(tmp_path / "one", other)
    classifier(tmp_path / "few", tokens=len(TOKENIZER) - 8)
    with pytest.raises(
        SystemExit, match=f"{len(TOKENIZER)} tokens but the model's embedding only {len(TOKENIZER) - 8}"
    ):
        load_reward_model(tmp_path / "few")


def test_equally_many_but_other_tokens_are_refused(monkeypatch):
    vocabulary = TOKENIZER.get_vocab()
    first, second = list(vocabulary)[-2:]
    other = tiny_tokenizer()
    monkeypatch.setattr(
        other, "get_vocab", lambda: vocabulary | {first: vocabulary[second], second: vocabulary[first]}
    )
    with pytest.raises(SystemExit, match=rf"2 of its tokenizer's {len(vocabulary):,} tokens are not the policy's"):
        reward_model.check_same(TOKENIZER, other, "here")


def test_opened_it_is_a_function_of_conversations(tmp_path):
    model = classifier(tmp_path).eval()
    talks = [[*row["prompt"], *row["chosen"]] for row in verses(3)]
    found = open_reward_model(str(tmp_path), torch.device("cpu"), batch_size=2)(talks)
    assert found == pytest.approx(score(model, TOKENIZER, talks, 3), abs=1e-6)
