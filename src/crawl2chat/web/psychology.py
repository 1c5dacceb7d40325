"""The report's pages about the base model: what it thinks comes next, what it recites, what a prompt makes of it."""

from html import escape

from crawl2chat import figures
from crawl2chat.prompting import NAMES
from crawl2chat.runs import Run
from crawl2chat.web.fragments import bar, clip, details, said, section, table


def sample(run: Run) -> str:
    """What the base model thinks comes next, and how differently it goes on from the same words."""
    found = run.json("sample", "samples.json")
    if found is None:
        return ""
    panels = []
    for one in found["distributions"][:6]:
        bars = [
            (token["text"].replace(" ", "␣").replace("\n", "⏎"), token["probability"]) for token in one["tokens"][:8]
        ]
        lines = [bar(text, share, f"<small>{said(share, 'share')}</small>") for text, share in bars]
        title = f"<h3><span class='prompt'>{escape(clip(one['prompt'], 300))}</span> …</h3>"
        panels.append(f'<div class="next">{title}{"".join(lines)}</div>')
    dreams = []
    for one in found["continuations"]:
        if one["prompt"] == found["continuations"][0]["prompt"]:
            lines = "".join(f"<li>{escape(clip(text, 160))}</li>" for text in one["texts"][:4])
            name, heat = escape(one["way"]["name"]), one["way"]["temperature"]
            dreams.append(f"<div><b>{name}</b> <small>temperature {heat:g}</small><ul>{lines}</ul></div>")
    again = ""
    if dreams:
        again = f"<h3>“{escape(clip(found['continuations'][0]['prompt'], 300))}”, continued again and again</h3>"
    return section(
        "One token at a time",
        "A base model is a simulator of documents: it weighs every token that could come next, and one is drawn.",
        f'<div class="pair">{"".join(panels)}</div>' if panels else "",
        f'{again}<div class="pair small">{"".join(dreams)}</div>' if dreams else "",
        by_temperature(found.get("temperatures", [])),
    )


def by_temperature(rows: list[dict]) -> str:
    """How much the continuations of one prompt differ, against the temperature they are drawn at."""
    if not rows:
        return ""
    names = {
        "distinct_continuations": "different continuations",
        "distinct_2": "different pairs of words (distinct-2)",
    }
    lines = {name: [(row["temperature"], row[key]) for row in rows] for key, name in names.items()}
    picture = figures.against("temperature", "share", lines)
    return f"<h3>How much the continuations of one prompt differ</h3>{picture}" if picture else ""


def psychology(run: Run) -> str:
    """What the base model recites, translates and answers, each with its numbers and examples."""
    found = run.json("sample", "samples.json") or {}
    times = run.metrics.get("pretrain", {}).get("epochs/recital")
    return section(
        "What it remembers, and what a prompt makes of it",
        "The base model, before any finetuning: it recites what it has read often, translates when shown how, and "
        "answers at the end of a page that reads like a conversation.",
        recitation(found["recall"], times) if "recall" in found else "",
        translator(found["translation"]) if "translation" in found else "",
        assistant(run, found["assistant"]) if "assistant" in found else "",
    )


def recitation(found: dict, epochs: float | None) -> str:
    """Recall of training and held-out documents, and against how often a passage was read."""
    given, wanted = found["given"], found["wanted"]
    rows = [
        [escape(name), f"{part['documents']:,}", said(part["recall"], "recall"), f"{part['matched']:.1f}"]
        for name, part in found["sets"].items()
    ]
    head = ["documents", "asked", "recited", "tokens before the first wrong one"]
    html = (
        f'<h3>Word for word</h3><p class="explain">A document\'s first {given} tokens are given; recited means that '
        f"the next {wanted} are written without a mistake.</p>{table(head, rows, numeric=(1, 2, 3))}"
    )
    repeated = found["repeated"]
    if not repeated:
        return html
    lines = {
        "recited": [(one["times"], one["recall"]) for one in repeated],
        "tokens right, share": [(one["times"], one["matched"] / wanted) for one in repeated],
    }
    picture = figures.against("times that a passage stands in the training text", "share", lines, powers=True)
    note = f" The corpus of them was read {epochs:.2f} times." if epochs else ""
    html += f"<h3>Recall grows with repetition</h3>{picture}" if picture else ""
    html += f'<p class="quiet">{repeated[-1]["documents"]} passages at each point; at 0, never read.{note}</p>'
    for one in (repeated[-1], repeated[0]):
        for row in sorted(one["rows"], key=lambda row: -row["matched"])[:1]:
            html += (
                f'<div class="dream"><span>{one["times"]} times</span>'
                f"<p><mark>{escape(clip(row['prompt'], 600))}</mark>{escape(clip(row['continued'], 600))}</p>"
                f"<span>the text</span><p>{escape(clip(row['text'], 600))}</p></div>"
            )
    return html


def translator(found: list[dict]) -> str:
    """Accuracy by the number and kind of worked examples, a prompt, and what was said."""
    rows = [[escape(NAMES[one["name"]]), f"{len(one['rows'])}", said(one["accuracy"], "accuracy")] for one in found]
    prompt = f"<pre>{escape(clip(found[0]['prompt'], 1500))}</pre>"
    asked = found[0]["rows"][:12]
    answers = [
        [*(escape(clip(row[key], 60)) for key in ("word", "said", "answer")), tick(row["right"])] for row in asked
    ]
    return (
        '<h3>A translator by example</h3><p class="explain">The layout of the examples stands on no page; only they '
        'say what is wanted.</p><div class="pair"><div>'
        f"{table(['prompt', 'words', 'right'], rows, numeric=(1, 2))}</div><div>"
        f"{prompt}{details('Words asked', table(['word', 'said', 'right is', ''], answers))}</div></div>"
    )


def assistant(run: Run, found: dict) -> str:
    """A transcript as prompt: the worked turns, the accuracy with and without them, and some answers."""
    numbers = run.metrics["sample"]
    page = "\n\n".join(
        f"{'Human' if turn['role'] == 'user' else 'Assistant'}: {turn['content']}" for turn in found["preface"]
    )
    answers = [
        [*(escape(clip(str(row[key]), 90)) for key in ("question", "said", "answer")), tick(row["score"])]
        for row in found["rows"][:12]
    ]
    keys = ("transcript_accuracy", "transcript_accuracy_bare", "question_alone_accuracy")
    with_turns, bare, alone = (said(numbers.get(key, 0), "accuracy") for key in keys)
    return (
        '<h3>An assistant by prompt alone</h3><p class="explain">The page below is all that it is told; each question '
        f"comes after it. Right: {with_turns} with these turns, {bare} after “Human:” and “Assistant:” alone, {alone} "
        "where the question is all there is.</p>"
        f'<div class="pair"><pre>{escape(clip(page, 3000))}</pre>'
        f"<div>{table(['question', 'said', 'right is', ''], answers)}</div></div>"
    )


def tick(right: float | None) -> str:
    return "✓" if right else "✗"
