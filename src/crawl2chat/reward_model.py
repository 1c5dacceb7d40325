"""A reward model: a chat model with a head that gives a conversation one number, learned from pairs of replies.

The loss is TRL's: -log sigmoid(score of the chosen - score of the rejected), Bradley and Terry's model of a choice
(Bradley & Terry 1952; Christiano et al. 2017, arXiv:1706.03741; Ouyang et al. 2022, arXiv:2203.02155). Two things are
done here and not by TRL: a conversation ends with the token that closes its last turn (what the chat template writes
after it is left out, so that a rollout's own ids get the same score), and pairs that teach nothing are dropped and
counted in place of being trained on.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import load_dataset
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import ModelConfig, RewardConfig, RewardTrainer, get_peft_config
from trl.trainer.reward_trainer import suppress_seqcls_warning

from crawl2chat.checkpoints import ResumeKeys, SafeCheckpoints
from crawl2chat.data.shards import documents
from crawl2chat.engine import context_length
from crawl2chat.mixture import check_messages
from crawl2chat.model import check_fit
from crawl2chat.protocol import end_tokens, load_tokenizer
from crawl2chat.stage import fail

HEAD = "score"  # transformers' name for the layer that gives the number
REASONS = ("identical", "too_long", "held_out")  # for which a pair is dropped
COLUMNS = ("chosen", "rejected", "prompt", "rank_distance")


# -- training


@dataclass
class RewardArguments(ResumeKeys, RewardConfig):
    """TRL's, with how a run goes on."""


class RewardModelTrainer(SafeCheckpoints, RewardTrainer):
    """RewardTrainer on rows of {"chosen_ids", "rejected_ids"}, safe to kill.

    A reply that stands in several pairs of a batch is read once: with all 10 pairs of a prompt's 5 replies in a batch
    (`by_prompt`, and train_sampling_strategy: sequential) 5 rows in place of 20, of the same loss and gradient (as in
    Ouyang et al. 2022, section 3.5).
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows, place = torch.unique(inputs["input_ids"], dim=0, return_inverse=True)
        one = torch.empty(len(rows), dtype=torch.long, device=place.device)
        one[place] = torch.arange(len(place), device=place.device)  # where a row stands, any of its places
        mask = inputs["attention_mask"][one]

        def read_once(use_cache: bool, **_) -> SequenceClassifierOutputWithPast:
            found = model(input_ids=rows, attention_mask=mask, use_cache=use_cache)
            return SequenceClassifierOutputWithPast(logits=found.logits[place])

        return super().compute_loss(read_once, inputs, return_outputs, num_items_in_batch)


def check_arguments(args: RewardArguments) -> None:
    """One clear line for keys that would change the tokenizer or the model behind the ids' back."""
    for key in ("chat_template_path", "eos_token", "pad_token", "model_init_kwargs"):
        if getattr(args, key) is not None:
            fail(f"reward: {key} does nothing here: model and tokenizer are taken as SFT left them; leave it out")
    if args.max_length is None:
        fail("reward: max_length is null; say how many tokens prompt and reply may have, longer pairs are dropped")


def adapter(model_args: ModelConfig) -> PeftConfig | None:
    """The recipe's LoRA, if it has one, with the head trained whole beside it: without that it stays random."""
    config = get_peft_config(model_args)
    if config is not None:
        config.task_type = "SEQ_CLS"
        config.modules_to_save = sorted({*(config.modules_to_save or []), HEAD})
    return config


def begin(path: str | Path, **kwargs) -> PreTrainedModel:
    """A chat model's body under a new random head of one label; seed before. Keywords go to from_pretrained.

    Stops with one line for a folder that is missing, cannot be read, or holds an adapter or no whole body.
    """
    folder = Path(path)
    if (folder / "adapter_config.json").is_file():
        fail(f"{path}: is an adapter; merge it into a whole model first (scripts/merge.py), and give that folder")
    if not folder.exists() and (str(path).count("/") != 1 or str(path).startswith(("output/", "./", "/"))):
        fail(f"{path}: no such folder; run the stage that writes it first")
    with suppress_seqcls_warning():  # the head is new on purpose
        model, missing = classifier(path, num_labels=1, **kwargs)
    if missing := [key for key in missing if not key.startswith(f"{HEAD}.")]:
        fail(f"{path}: the weights lack {len(missing)} tensors, {missing[0]} first; write the folder again")
    return model


def classifier(path: str | Path, **kwargs) -> tuple[PreTrainedModel, list[str]]:
    """A sequence classifier in float32, unless `dtype` says otherwise, and the tensors that its files lack."""
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, output_loading_info=True, **{"dtype": torch.float32, **kwargs}
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        fail(f"reward_model: {path}: cannot load a sequence classifier: {str(error).splitlines()[0]}")
    return model, sorted(report["missing_keys"])


# -- pairs


def read_pairs(source: str, split: str) -> list[dict]:
    """The pairs of a split ("train", "test"): {"prompt", "chosen", "rejected", "rank_distance"}, all three messages.

    `source` is a folder of preferences.py (<split>.jsonl), or a set on the hub (owner/name:configuration). Where a row
    has no prompt, it is what chosen and rejected begin with alike. One clear line for a row that is no pair.
    """
    local = Path(source).exists() or source.startswith(("output/", "./", "/")) or source.count("/") != 1
    where = f"{source}/{split}.jsonl" if local else f"{source}, split {split}"
    if local:
        if not Path(where).is_file():
            fail(f"{where}: no such file; run scripts/preferences.py first, or correct `preferences` in the recipe")
        rows = documents(where, COLUMNS)
    else:
        name, _, configuration = source.partition(":")
        try:
            rows = load_dataset(name, configuration or None, split=split)
        except (OSError, ValueError) as error:
            fail(f"{where}: cannot be read ({str(error)[:200]})")
    return [pair(row, f"{where}: row {number}") for number, row in enumerate(rows, 1)]


def pair(row: dict, where: str) -> dict:
    """A row as messages of prompt, chosen and rejected reply."""
    prompt, chosen, rejected = (row.get(key) for key in ("prompt", "chosen", "rejected"))
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        fail(f"{where}: `chosen` and `rejected` must be lists of messages, got {str(chosen)[:80]!r}")
    if not isinstance(prompt, list):
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for reply in (chosen, rejected):
        check_messages([*prompt, *reply], where)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "rank_distance": row.get("rank_distance")}


def question(row: dict) -> str:
    """What tells one prompt from another."""
    return repr([(turn["role"], turn.get("content")) for turn in row["prompt"]])


def encode_pairs(
    rows: Sequence[dict], tokenizer: PreTrainedTokenizerBase, max_length: int, without: Sequence[dict] = ()
) -> tuple[list[dict], Counter]:
    """The pairs that can teach, with "chosen_ids" and "rejected_ids", and how many were dropped for what reason:
    identical, too_long (one side has more than `max_length` tokens), held_out (its prompt is one of `without`'s).

    Stops with one line where none is left.
    """
    kept, dropped, held_out = [], Counter(), {question(row) for row in without}
    for row in tqdm(rows, desc="pairs", unit="pair", disable=None if len(rows) > 5000 else True):
        chosen, rejected = (encode(tokenizer, [*row["prompt"], *row[side]]) for side in ("chosen", "rejected"))
        if chosen == rejected:
            dropped["identical"] += 1
        elif max(len(chosen), len(rejected)) > max_length:
            dropped["too_long"] += 1
        elif question(row) in held_out:
            dropped["held_out"] += 1
        else:
            kept.append({**row, "chosen_ids": chosen, "rejected_ids": rejected})
    if not kept:
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in dropped.items())
        fail(f"reward: none of {len(rows):,} pairs is left to learn from: {reasons}; max_length is {max_length}")
    return kept, dropped


def by_prompt(rows: Sequence[dict], seed: int) -> list[dict]:
    """The pairs in an order for training: prompts shuffled, all pairs of a prompt side by side."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(question(row), []).append(row)
    order = random.Random(f"prompts {seed}").sample(list(groups), len(groups))
    return [row for name in order for row in groups[name]]


# -- scores


def encode(tokenizer: PreTrainedTokenizerBase, conversation: list[dict]) -> list[int]:
    """Ids of a conversation up to the token that closes its last turn, the one that is scored."""
    ids, ends = tokenizer.apply_chat_template(conversation, return_dict=False), end_tokens(tokenizer)
    last = max((i for i, token in enumerate(ids) if token in ends), default=len(ids) - 1)
    return ids[: last + 1]


@torch.inference_mode()
def score_ids(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], batch_size: int, progress: bool = False
) -> list[float]:
    """One score a row of ids, taken at its last token; rows of like length are scored together, at most `batch_size`.

    Padding is the model's `config.pad_token_id`, on the right. Raises ValueError for an empty row, one that ends in
    the padding token, or one longer than the model's context.
    """
    pad, context = model.config.get_text_config().pad_token_id, context_length(model)
    for number, row in enumerate(rows):
        if not row or row[-1] == pad:
            raise ValueError(f"row {number} is empty or ends in the padding token {pad}: there is no token to score")
        if len(row) > context:
            raise ValueError(f"row {number} has {len(row)} tokens, the reward model's context {context}")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores, was_training = [0.0] * len(rows), model.training
    model.eval()
    for start in tqdm(range(0, len(rows), batch_size), desc="scoring", disable=not progress):
        part = order[start : start + batch_size]
        longest = len(rows[part[-1]])
        ids = torch.tensor([[*rows[i], *[pad] * (longest - len(rows[i]))] for i in part], device=model.device)
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in part], device=model.device)
        found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].float().tolist()
        for i, value in zip(part, found, strict=True):
            scores[i] = value
    model.train(was_training)
    return scores


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict]],
    batch_size: int,
    progress: bool = False,
) -> list[float]:
    """One number a conversation (messages), higher is better; see `score_ids`."""
    return score_ids(model, [encode(tokenizer, talk) for talk in conversations], batch_size, progress)


def load_reward_model(
    path: str | Path, policy_tokenizer: PreTrainedTokenizerBase | None = None, **kwargs
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model (an adapter merged into its base) in evaluation mode, and its tokenizer.

    Stops with one line for what is no reward model, has another number of labels than one, or, where the policy's
    tokenizer is given, another tokenizer than the policy.
    """
    path = str(path)
    tokenizer, folder = load_tokenizer(path), Path(path)
    try:
        if (folder / "adapter_config.json").is_file():
            model = with_adapter(folder, **kwargs)
        else:
            model, missing = classifier(path, **kwargs)
            if missing:  # the library makes them up
                fail(f"reward_model: {path}: is no reward model, its weights lack {missing[0]}; give a trained one")
    except SafetensorError as error:
        fail(f"reward_model: {path}: the weights are damaged ({error}); run the stage that writes this folder again")
    if model.config.num_labels != 1:
        fail(f"reward_model: {path}: has {model.config.num_labels} labels; a reward model has 1")
    check_fit(model, tokenizer, path)
    check_tokenizer(tokenizer, path)
    if policy_tokenizer is not None:
        check_same(tokenizer, policy_tokenizer, path)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def with_adapter(folder: Path, **kwargs) -> PreTrainedModel:
    """The base model that a LoRA folder names, as a classifier, with the adapter and its head merged in."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        fail(f"reward_model: {folder}: no adapter_model.safetensors; run the stage that writes this folder again")
    with safe_open(file, "pt") as tensors:
        if not any(f".{HEAD}." in key for key in tensors.keys()):
            fail(f"reward_model: {folder}: is no reward model, its adapter has no {HEAD} head; give a trained one")
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    try:
        return PeftModel.from_pretrained(begin(base, **kwargs), folder).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        fail(f"reward_model: {folder}: the adapter does not fit {base}: {str(error).splitlines()[0]}")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """One clear line for a tokenizer whose conversations would not be scored at the token that closes them."""
    if not tokenizer.chat_template or tokenizer.pad_token_id is None:
        fail(f"reward_model: {path}: its tokenizer needs a chat template and a padding token")
    talk = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "-"}]
    if encode(tokenizer, talk)[-1] == tokenizer.pad_token_id:
        fail(
            f"reward_model: {path}: its padding token {tokenizer.pad_token} closes the turns too, so the score would "
            "fall on the token before; give it another pad_token"
        )


def check_same(tokenizer: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Refuse a reward model whose tokens are not the policy's, naming both numbers."""
    own, other = tokenizer.get_vocab(), policy.get_vocab()
    if len(own) != len(other):
        fail(
            f"reward_model: {path}: its tokenizer has {len(own):,} tokens and the policy's {len(other):,}; "
            "train it from the checkpoint that the policy starts from"
        )
    if differ := sum(other.get(token) != i for token, i in own.items()):
        fail(
            f"reward_model: {path}: {differ:,} of its tokenizer's {len(own):,} tokens are not the policy's; "
            "train it from the checkpoint that the policy starts from"
        )


def open_reward_model(
    path: str, device: torch.device, batch_size: int = 64
) -> Callable[[list[list[dict]]], list[float]]:
    """A reward model as a function from conversations to their scores."""
    model, tokenizer = load_reward_model(path)
    model = model.to(device)
    return lambda conversations: score(model, tokenizer, conversations, batch_size)
