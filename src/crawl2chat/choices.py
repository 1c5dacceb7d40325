"""Score the choices during a run: HellaSwag as lm-eval scores it, and the same kind of question from held-out pages.

A question is a beginning and some endings, one of them right. The model's choice is the ending with the greatest
log-likelihood given the beginning (acc), or the greatest per character of the ending (acc_norm, the number that
HellaSwag's tables give). Same numbers as lm-eval 0.4.13 on the same checkpoint, from the live model of a training run,
over all its ranks. Benchmarks after the run are lm-eval's own, in benchmarks.py.
"""

import math
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.data.shards import read_shard, shard_files
from crawl2chat.stage import fail

COLUMNS = ("endings", "label", "ctx_a", "ctx_b", "activity_label", "query")
BRACKETS = re.compile(r"\[[^\]\n]*\]")
# a sentence's end is followed by space; a capital before the dot is an initial
SENTENCE = re.compile(r"(?<=[^A-Z\s][.!?]) (?=\S)(.*?[^A-Z\s][.!?])(?=\s|$)")
PAD_LENGTH = {"cuda": 64}  # lengths are multiples of this: a compiled model meets few shapes
HEAD_ROWS = 16  # rows whose endings pass through the output layer at once
RESCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")  # in a model's config


@dataclass
class Choices:
    """A set of questions with given endings, as a recipe names it."""

    name: str = field(metadata={"help": "what metrics call it"})
    path: str | None = field(
        default=None,
        metadata={"help": "Rowan/hellaswag, or shards of that form; none: from held-out pages", "reads": True},
    )
    n: int = field(default=400, metadata={"help": "questions at most", "gt": 0})


@dataclass(frozen=True)
class Question:
    """A beginning, its possible endings, and the index of the right one."""

    query: str
    choices: tuple[str, ...]
    gold: int


def clean(text: str) -> str:
    """HellaSwag's text without the marks that WikiHow left in it, as lm-eval's task (lm_eval/tasks/hellaswag) has it:
    " [title]" ends a sentence, anything else in brackets goes, two spaces become one.
    """
    return BRACKETS.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def read_question(row: dict, where: str) -> Question:
    """One row of HellaSwag (activity_label, ctx_a, ctx_b, endings, label), or in general form {"query", "endings",
    "label"}, whose texts are taken as they stand.
    """
    endings, label = row.get("endings"), str(row.get("label")).strip()
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(ending, str) for ending in endings):
        fail(f"{where}: `endings` must be a list of two texts or more, got {str(endings)[:80]!r}")
    if not label.isdecimal() or int(label) >= len(endings):
        fail(f"{where}: `label` must be the right ending's index, 0 to {len(endings) - 1}, got {row.get('label')!r}")
    if row.get("query") is None:
        parts = [row.get(key) for key in ("activity_label", "ctx_a", "ctx_b")]
        if not all(isinstance(part, str) for part in parts):
            fail(f"{where}: needs the texts `activity_label`, `ctx_a` and `ctx_b` as HellaSwag has them, or `query`")
        activity, first, second = parts
        query = clean(f"{activity}: {first} {second.capitalize()}")
        endings = [clean(ending) for ending in endings]
    else:
        query = row["query"]
    if not isinstance(query, str) or not query.strip():
        fail(f"{where}: the question has no beginning; endings are scored given a text")
    return Question(query, tuple(endings), int(label))


def read_choices(path: str | Path, limit: int | None = None, seed: int = 0) -> list[Question]:
    """The questions of a file or folder of parquet or JSON lines, or of a set on the hub (Rowan/hellaswag, its
    validation split); no more than `limit` of them, drawn by `seed`. See read_question for their two forms.

    Stops with one line for a source that is not at hand, is empty, or holds a row that is no question.
    """
    if Path(path).exists() or str(path).startswith(("output/", "./", "../", "/")) or str(path).count("/") != 1:
        rows = ((f"{f}, row {i}", row) for f in shard_files(path) for i, row in enumerate(read_shard(f, COLUMNS), 1))
    else:
        from datasets import load_dataset

        name, _, configuration = str(path).partition(":")
        try:
            found = load_dataset(name, configuration or None, split="validation")
        except Exception as error:  # no network, no such set, no such split: the libraries raise a dozen kinds
            reason = f"{type(error).__name__}: {str(error)[:150]}"
            fail(f"{path}: cannot be had from the hub ({reason}); a local file of the same columns will do")
        rows = ((f"{path}, row {i}", row) for i, row in enumerate(found, 1))
    questions = [read_question(row, where) for where, row in rows]
    if not questions:
        fail(f"{path}: holds no questions; give rows of endings, label and HellaSwag's contexts or a query")
    if limit is not None and limit < len(questions):
        questions = random.Random(seed).sample(questions, limit)
    return questions


def choices_from_pages(pages: Sequence[dict], n: int, seed: int, context: int = 200) -> list[Question]:
    """At most n questions of the same kind from held-out pages ({"text", "source"}); a guess is right one time in 4.

    The beginning is a page's text up to a sentence, `context` characters at most; the right ending is that sentence.
    The wrong ones stand at the same place of other pages of the same source: those three nearest to it in length.
    Pages take turns, so that a long page asks no more than a short one. Stops where there is no question at all.
    """
    rng = random.Random(seed)
    sources: dict[str, list[list[tuple[str, str]]]] = defaultdict(list)
    for page in pages:
        found = [(page["text"][: match.start()], match[1]) for match in SENTENCE.finditer(page["text"])]
        sources[page["source"]].append(found)
    by_page = []
    for texts in sources.values():
        for own in texts:
            others = [sentences for sentences in texts if sentences is not own]
            asked = list(_ask(own, others, context, rng))
            by_page.append(rng.sample(asked, len(asked)))
    rng.shuffle(by_page)
    questions = [question for turn in zip_longest(*by_page) for question in turn if question is not None][:n]
    if not questions:
        fail(f"{len(pages)} held-out pages give no question: each source needs four pages of some sentences")
    if len(questions) < n and os.environ.get("RANK", "0") == "0":
        tqdm.write(f"choices: {len(pages)} held-out pages give {len(questions)} questions, not the {n} asked for")
    return questions


def questions_of(choices: Choices, held_out: Sequence[dict], seed: int) -> list[Question]:
    """The questions of a recipe's entry; `held_out` are the pages where it names no path."""
    if choices.path:
        return read_choices(choices.path, choices.n, seed)
    return choices_from_pages(held_out, choices.n, seed)


def _ask(own: list[tuple[str, str]], others: list, context: int, rng: random.Random) -> Iterator[Question]:
    """A page's questions: its (beginning, sentence) pairs, each with three sentences of `others` at the same place."""
    for place, (query, right) in enumerate(own):
        if len(query) > context:
            return
        wrong = {page[place][1] for page in others if place < len(page)} - {sentence for _, sentence in own}
        wrong = rng.sample(sorted(wrong), len(wrong))  # by chance among those of one length
        endings = [right, *sorted(wrong, key=lambda ending: abs(len(ending) - len(right)))[:3]]
        if len(endings) == 4:
            rng.shuffle(endings)
            yield Question(query, tuple(endings), endings.index(right))


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[tuple[list[int], list[int]]]:
    """For every choice of every question in turn, the ids of its beginning and of its ending, as lm-eval splits them.

    Beginning, a space and ending are encoded as one text, which is cut where the beginning alone would end (what
    spaces close the beginning go to the ending). Special tokens are those that the tokenizer adds by itself, and none
    where the text already begins with its first token.
    """
    first = tokenizer.bos_token or tokenizer.eos_token

    def encode(texts: list[str]) -> list[list[int]]:
        encoded = tokenizer(texts, verbose=False)["input_ids"]
        for i, text in enumerate(texts):
            if first and text.startswith(first):
                encoded[i] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return encoded

    heads = encode([question.query.rstrip() for question in questions])
    wholes = encode([f"{question.query} {choice}" for question in questions for choice in question.choices])
    heads = [head for head, question in zip(heads, questions, strict=True) for _ in question.choices]
    pairs = [(head, whole[len(head) :]) for head, whole in zip(heads, wholes, strict=True)]
    if not all(head and tail for head, tail in pairs):
        fail("choices: an ending has no token of its own after its beginning; it cannot be scored")
    return pairs


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], batch_size: int = 32
) -> list[torch.Tensor]:
    """Each question's log-likelihoods (nats) of its endings given its beginning: float32 (choices,), the same on every
    rank.

    `model` is the unwrapped one; autocast is the caller's. Every rank takes every n-th batch and all make the same
    calls, which ZeRO-3 needs. A text longer than the model's positions loses its beginning, as in lm-eval.
    """
    rescaled = [key for key in RESCALED if getattr(model.config, key, None) not in (None, 1, 1.0)]
    if rescaled:
        fail(f"choices: {model.config.model_type} rescales its logits ({rescaled[0]}); use benchmarks.py's")
    positions = getattr(model.config, "max_position_embeddings", None) or 2048
    pairs = encode_choices(tokenizer, questions)
    if max(len(tail) for _, tail in pairs) > positions:
        fail(f"choices: an ending is longer than the model's {positions} positions")
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    cut = sum(len(head) + len(tail) > positions + 1 for head, tail in pairs)
    if cut and rank == 0:
        tqdm.write(f"choices: {cut} of {len(pairs)} texts lost their beginning to fit into {positions} positions")
    ids = [(head + tail)[-(positions + 1) :] for head, tail in pairs]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    multiple = PAD_LENGTH.get(model.device.type, 1)
    scores = torch.zeros(len(ids), device=model.device)
    training = model.training
    model.eval()
    for start in tqdm(range(0, len(batches), ranks), desc="choices", delay=3, leave=False, disable=rank > 0):
        batch = batches[min(start + rank, len(batches) - 1)]
        rows = (batch * batch_size)[:batch_size]  # the last batch is filled up with itself: one shape
        length = min(-(-(len(ids[rows[0]]) - 1) // multiple) * multiple, positions)
        # padded on the right: under causal attention no token sees what comes after it, so no mask is needed
        inputs = torch.tensor([(ids[i][:-1] + [0] * length)[:length] for i in rows], device=model.device)
        hidden = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state  # (batch, length, width)
        sums = []
        for chunk in range(0, batch_size, HEAD_ROWS):
            part = rows[chunk : chunk + HEAD_ROWS]
            counts, ends = [len(pairs[i][1]) for i in part], [len(ids[i]) - 1 for i in part]
            spans = enumerate(zip(counts, ends, strict=True), chunk)
            places = [(row, place) for row, (count, end) in spans for place in range(end - count, end)]
            row, place = torch.tensor(places, device=model.device).T
            targets = torch.tensor([token for i in part for token in pairs[i][1]], device=model.device)
            logits = model.get_output_embeddings()(hidden[row, place]).float()  # (endings' tokens, vocab)
            sums += [-nats.sum() for nats in F.cross_entropy(logits, targets, reduction="none").split(counts)]
        if start + rank < len(batches):
            scores[rows] = torch.stack(sums)
    model.train(training)
    if ranks > 1:
        distributed.all_reduce(scores)
    return list(scores.cpu().split([len(question.choices) for question in questions]))


def score_choices(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], batch_size: int = 32
) -> dict[str, float]:
    """acc, acc_norm, acc_stderr, acc_norm_stderr and n of the live model, as lm-eval 0.4.13 has them for a checkpoint.

    acc_norm divides an ending's log-likelihood by its length in characters; the errors are the sample's standard
    deviation / sqrt(n). Log-probabilities are float32 whatever the model computes in; lm-eval keeps a bf16 model's in
    bf16 unless told softmax_dtype=float32. The model keeps its mode and the random generators their state. Stops where
    the model gives a likelihood that is not finite.
    """
    found = log_likelihoods(model, tokenizer, questions, batch_size)
    if not all(scores.isfinite().all() for scores in found):
        fail("choices: the model's log-likelihoods are not finite; the run has diverged")
    n, right = len(questions), {"acc": 0, "acc_norm": 0}
    for question, scores in zip(questions, found, strict=True):
        characters = torch.tensor([len(choice) for choice in question.choices], dtype=torch.float64)
        right["acc"] += int(scores.argmax() == question.gold)
        right["acc_norm"] += int((scores / characters).argmax() == question.gold)
    shares = {name: count / n for name, count in right.items()}
    errors = {f"{name}_stderr": math.sqrt(p * (1 - p) / max(n - 1, 1)) for name, p in shares.items()}
    return {**shares, **errors, "n": n}
