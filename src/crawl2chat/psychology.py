"""What a base model is like, in numbers: what it thinks comes next, how differently it goes on from the same words,
and what it recites of the text it was trained on.

Recall is measured as in Carlini et al. 2023, "Quantifying Memorization Across Neural Language Models": the first
tokens of a document are given, and greedy decoding must write the next ones exactly.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat import evaluation
from crawl2chat.data.shards import documents
from crawl2chat.data.tokens import held_out
from crawl2chat.decoding import Sampling, decode
from crawl2chat.engine import complete, next_token_probabilities
from crawl2chat.protocol import END_OF_TEXT
from crawl2chat.stage import fail

READ = 5000  # documents of each training source from which those asked about are drawn


@dataclass
class Way:
    """A way of drawing the next token."""

    name: str = field(metadata={"help": "what the report calls it"})
    temperature: float = field(default=1.0, metadata={"help": "0 is greedy", "ge": 0})
    top_k: int = field(default=0, metadata={"help": "draw from the k likeliest tokens; 0: from all", "ge": 0})
    top_p: float = field(default=1.0, metadata={"help": "draw from the likeliest tokens that hold this share"})


@dataclass
class Recall:
    """Verbatim recall: documents whose beginnings are given, and what counts as recited."""

    train: list[str] = field(metadata={"help": "shards that the model was trained on, of one kind", "reads": True})
    heldout: str = field(metadata={"help": "held-out documents that pretrain wrote: text, source", "reads": True})
    source: str = field(metadata={"help": "the kind: the source of the held-out documents"})
    held_out_share: float = field(default=0.01, metadata={"help": "as in the pretraining recipe", "gt": 0, "lt": 0.5})
    repeated: str | None = field(
        default=None, metadata={"help": "passages of known repetition: text, times", "reads": True}
    )
    documents: int = field(default=200, metadata={"help": "training documents asked about", "ge": 1})
    prompt_tokens: int = field(default=32, metadata={"help": "tokens that are given", "ge": 1})
    continued_tokens: int = field(default=32, metadata={"help": "next tokens that must all be right", "ge": 1})


def beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    """What begins a document, so that the model starts a new one: END_OF_TEXT, or nothing where it is no token."""
    return END_OF_TEXT if END_OF_TEXT in tokenizer.get_vocab() else ""


# the next token


def next_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], top: int
) -> list[dict]:
    """For each prompt {"prompt", "entropy_bits", "tokens": the `top` likeliest, each {"text", "probability"}}."""
    probabilities = next_token_probabilities(model, tokenizer, [beginning(tokenizer) + prompt for prompt in prompts])
    entropies = (torch.special.entr(probabilities.double()).sum(-1) / torch.log(torch.tensor(2.0))).tolist()
    found = []
    for prompt, row, entropy in zip(prompts, probabilities, entropies, strict=True):
        likeliest = zip(*(values.tolist() for values in row.topk(min(top, len(row)))), strict=True)
        tokens = [{"text": tokenizer.decode([i]), "probability": round(p, 6)} for p, i in likeliest]
        found.append({"prompt": prompt, "entropy_bits": round(entropy, 4), "tokens": tokens})
    return found


def draw_bars(distributions: Sequence[dict], path: Path) -> None:
    """A bar picture of the next token's distribution, a panel for each prompt."""
    columns = min(len(distributions), 2)
    rows = -(-len(distributions) // columns)
    size = (6.2 * columns, 0.7 + rows * (0.9 + 0.22 * len(distributions[0]["tokens"])))
    figure = Figure(figsize=size, layout="tight")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(distributions) :]:
        axis.axis("off")
    for axis, one in zip(axes.flat, distributions, strict=False):
        tokens = one["tokens"][::-1]
        labels = [repr(token["text"]).replace("$", r"\$") for token in tokens]
        axis.barh(range(len(tokens)), [token["probability"] for token in tokens], color="#3b6ea5")
        axis.set_yticks(range(len(tokens)), labels, fontsize=8, family="monospace")
        axis.set_title(one["prompt"].replace("\n", " ").replace("$", r"\$"), fontsize=10, loc="left")
        axis.set_xlim(0, 1)
        axis.set_xlabel(f"probability (entropy {one['entropy_bits']:.2f} bits)", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)


# the same prompt many times


def distinct_2(texts: Sequence[str]) -> float:
    """Share of different ones among all pairs of neighbouring words of the texts (Li et al. 2016, distinct-2)."""
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
    return len(set(pairs)) / max(len(pairs), 1)


def continue_often(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    way: Way,
    draws: int,
    max_new_tokens: int,
    seed: int = 0,
) -> tuple[dict[str, float], list[dict]]:
    """Go on with each prompt `draws` times.

    Returns distinct_continuations (share of different ones among a prompt's continuations) and distinct_2, both means
    over the prompts; and a row {"way", "prompt", "texts", "distinct_2"} for each prompt.
    """
    options = {"temperature": way.temperature, "top_k": way.top_k, "top_p": way.top_p, "seed": seed}
    starts = [beginning(tokenizer) + prompt for prompt in prompts for _ in range(draws)]
    texts = [c.text for c in complete(model, tokenizer, starts, max_new_tokens, progress=True, **options)]
    groups = [texts[i : i + draws] for i in range(0, len(texts), draws)]
    rows = [
        {"way": asdict(way), "prompt": prompt, "texts": group, "distinct_2": distinct_2(group)}
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    numbers = {"distinct_continuations": sum(len(set(group)) for group in groups) / len(texts)}
    return {**numbers, "distinct_2": sum(row["distinct_2"] for row in rows) / len(rows)}, rows


# verbatim recall


def recite(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], given: int, wanted: int
) -> list[dict]:
    """Give the first `given` tokens of each text and decode `wanted` more, greedily.

    Returns for each text that is long enough a row {"prompt", "text" (what comes next), "continued" (what was
    written), "matched" (tokens until the first wrong one)}.
    """
    first = [tokenizer.convert_tokens_to_ids(END_OF_TEXT)] if beginning(tokenizer) else []
    encoded = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    rows = [ids[: given + wanted] for ids in encoded if len(ids) >= given + wanted]
    written: list[list[int]] = [[] for _ in rows]
    prompts, budgets = [first + ids[:given] for ids in rows], [wanted] * len(rows)
    for i, token, _ in decode(
        model, prompts, budgets, set(), len(tokenizer), Sampling(), [[]] * len(rows), batch_size=64
    ):
        written[i].append(token)
    found = []
    for ids, ours in zip(rows, written, strict=True):
        right = [a == b for a, b in zip(ids[given:], ours, strict=True)]
        matched = right.index(False) if False in right else wanted
        prompt, text, continued = map(tokenizer.decode, (ids[:given], ids[given:], ours))
        found.append({"prompt": prompt, "text": text, "continued": continued, "matched": matched})
    return found


def summary(rows: Sequence[dict], wanted: int) -> dict[str, float]:
    """Share of rows recited to the end, mean tokens until the first wrong one, and the number of rows."""
    count = max(len(rows), 1)
    recited = sum(row["matched"] == wanted for row in rows) / count
    return {"recall": recited, "matched": sum(row["matched"] for row in rows) / count, "documents": len(rows)}


def training_texts(recall: Recall, seed: int) -> dict[str, list[str]]:
    """Texts drawn from all that the model was trained on, each copy counted: {source: texts}."""
    pool = [
        (Path(path).name, row["text"])
        for path in recall.train
        for row in islice(documents(path, ("text", "id")), READ)
        if not held_out(row.get("id") or row["text"], recall.held_out_share)
    ]
    texts = defaultdict(list)
    for name, text in random.Random(seed).sample(pool, min(recall.documents, len(pool))):
        texts[name].append(text)
    return dict(texts)


def verbatim_recall(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recall: Recall, seed: int = 0
) -> tuple[dict[str, float], dict]:
    """Recall of training documents, of held-out ones of the same kind, and of passages by how often they were read.

    Returns verbatim_recall_train and _heldout (shares), matched_tokens_train and _heldout, verbatim_recall/<source>,
    and verbatim_recall_times/<n>; and the evidence: {"given", "wanted", "sets": rows by name, "repeated": by times}.
    """
    given, wanted = recall.prompt_tokens, recall.continued_tokens
    pages = [row["text"] for row in evaluation.read_rows(recall.heldout, ("text", "source"))
             if row["source"] == recall.source]  # fmt: skip
    if not pages:
        fail(f"recall: {recall.heldout} has no document of the source {recall.source!r}; name one that it has")
    by_source = training_texts(recall, seed)
    sets = {name: recite(model, tokenizer, texts, given, wanted) for name, texts in by_source.items()}
    train = summary([row for rows in sets.values() for row in rows], wanted)
    sets["held out"] = recite(model, tokenizer, pages, given, wanted)
    heldout = summary(sets["held out"], wanted)
    for name, part in (("training", train), ("held-out", heldout)):
        if not part["documents"]:
            fail(f"recall: no {name} document has {given + wanted} tokens; ask for fewer")
    metrics = {
        "verbatim_recall_train": train["recall"],
        "verbatim_recall_heldout": heldout["recall"],
        "matched_tokens_train": train["matched"],
        "matched_tokens_heldout": heldout["matched"],
        **{f"verbatim_recall/{name}": summary(sets[name], wanted)["recall"] for name in by_source},
    }
    passages = defaultdict(list)
    for row in evaluation.read_rows(recall.repeated, ("text", "times")) if recall.repeated else ():
        passages[row["times"]].append(row["text"])
    repeated = []
    for times in sorted(passages):
        rows = recite(model, tokenizer, passages[times], given, wanted)
        repeated.append({"times": times, **summary(rows, wanted), "rows": rows})
        metrics[f"verbatim_recall_times/{times}"] = repeated[-1]["recall"]
        metrics[f"matched_tokens_times/{times}"] = repeated[-1]["matched"]
    shown = {name: {**summary(rows, wanted), "rows": rows} for name, rows in sets.items()}
    return metrics, {"given": given, "wanted": wanted, "sets": shown, "repeated": repeated}


def recall_table(evidence: dict) -> str:
    """The evidence of `verbatim_recall` as lines of text, with two continuations."""
    given, wanted = evidence["given"], evidence["wanted"]
    lines = [f"\ngiven {given} tokens, the next {wanted} word for word:"]
    parts = list(evidence["sets"].items())
    parts += [(f"read {one['times']} times", one) for one in evidence["repeated"]]
    for name, part in parts:
        known = f"{part['recall']:6.1%} of {part['documents']:>4} documents"
        lines.append(f"  {name:<16}{known}, {part['matched']:5.1f} tokens before the first wrong one")
    for name, part in (parts[-1], next(item for item in parts if item[0] == "held out")):
        row = max(part["rows"], key=lambda row: row["matched"], default=None)
        if row:
            lines.append(f"  {name}: {row['prompt'][-60:]!r} | {row['continued']!r} ({row['matched']} tokens right)")
    return "\n".join(lines)
