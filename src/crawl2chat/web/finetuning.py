"""The report's pages about finetuning: what is learnt from, what bears loss, and the instructions behind the rows."""

from collections import Counter

from crawl2chat import figures
from crawl2chat.protocol import load_tokenizer, loss_mask, token_view
from crawl2chat.runs import Run, read_json
from crawl2chat.web.fragments import said, section, spoken, tiles, turns

SHOWN = 1500  # tokens of a conversation, at most


def conversations(run: Run) -> str:
    """How many conversations of each task, and which tokens of one of them bear loss."""
    numbers = run.metrics.get("conversations", {})
    rows = [(key.removeprefix("rows/"), value) for key, value in numbers.items() if key.startswith("rows/") and value]
    rows.sort(key=lambda row: -row[1])
    firsts = []
    for path in sorted((run.folder / "conversations").glob("*/train.jsonl")) if numbers else ():
        with path.open(encoding="utf-8") as lines:
            firsts += [read_json(path, line, 1)["messages"] for line in [next(lines, "")] if line.strip()]
    view, home = "", next((stage for stage in ("sft", "pretrain", "tokenizer") if stage in run.metrics), None)
    if firsts and home:
        messages = max(firsts, key=lambda turns: len({turn["role"] for turn in turns}))  # one with a tool, if any has
        words = load_tokenizer(run.folder / home)
        ids, mask = loss_mask(words, messages)
        cut = f" The first {SHOWN:,} are shown." if len(ids) > SHOWN else ""
        view = (
            f'<h3>What bears loss</h3><p class="explain">The {sum(mask)} underlined of these {len(ids)} tokens are '
            "what the model is trained to write: the assistant's words, its calls and its end tokens. Questions and "
            f"tool results are only read.{cut}</p>"
            f'<div class="paper">{token_view(ids[:SHOWN], words, mask[:SHOWN])}</div>'
        )
    return section(
        "Conversations to learn from",
        "Questions, worked answers, and tool calls with what the tools really answered.",
        figures.bars(rows) if rows else "",
        view,
    )


def labelling(run: Run) -> str:
    """What a model wrote from the labelling instructions: how many were kept, why others were dropped, one of each."""
    numbers = run.metrics.get("conversations", {})
    dropped = {key.rpartition("/")[2]: n for key, n in numbers.items() if key.startswith("labelling/dropped/") and n}
    facts = [
        (said(numbers[f"labelling/{key}"]), name)
        for key, name in (
            ("prompts", "prompts written"),
            ("conversations", "answered"),
            ("kept", "kept"),
            ("mean_mark", "mean mark"),
        )
        if f"labelling/{key}" in numbers
    ]
    parts = []
    for path in sorted((run.folder / "conversations").glob("*/dropped.jsonl")) if facts else ():
        for name, key in (("train.jsonl", "messages"), ("dropped.jsonl", "conversation")):
            for row in run.rows("conversations", f"{path.parent.name}/{name}")[:1]:
                why = f"dropped: {spoken(str(row['reason']))}" if key == "conversation" else "kept"
                parts.append(f'<div class="chat"><h3>{why}</h3>{turns(row[key])}</div>')
    return section(
        "Labelling instructions",
        "A file says what an ideal answer is: helpful, truthful, harmless. A model wrote prompts and answers by it, "
        "and a judge marked them by the same file.",
        tiles(facts),
        "<h3>Dropped, by reason</h3>" + figures.bars(Counter(dropped).most_common()) if dropped else "",
        f'<div class="chats">{"".join(parts)}</div>' if parts else "",
    )


def sft(run: Run) -> str:
    """Loss and accuracy on the assistant's words over the steps."""
    history = run.json("sft", "log_history.json") or []
    panels = []
    for key, title in (("loss", "loss on the assistant's words"), ("mean_token_accuracy", "next token right, share")):
        points = [(row["step"], row[key]) for row in history if key in row]
        panels += [(title, {key: points}, None)] if points else []
    numbers = run.metrics.get("sft", {})
    facts = [
        (said(numbers[key], "share" if "share" in key else ""), name)
        for key, name in (
            ("rows", "conversations"),
            ("tokens", "tokens"),
            ("supervised_token_share", "of them bear loss"),
            ("steps", "steps"),
            ("trained_parameters", "parameters trained"),
        )
        if key in numbers
    ]
    return section(
        "Supervised finetuning",
        "The base model becomes an assistant: it goes on learning the next token, now of conversations, and only of "
        "the assistant's words.",
        tiles([(value.replace(".0\u00a0%", "\u00a0%"), name) for value, name in facts]),
        figures.curves(panels) if panels else "",
    )
