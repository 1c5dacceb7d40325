"""The report's pages about the crawl: the funnel and its evidence, and the corpus that came of it in ever larger
alphabets.
"""

import math
from collections import Counter
from collections.abc import Mapping
from html import escape

from matplotlib.figure import Figure

from crawl2chat import figures
from crawl2chat.data.evidence import HTML, gather, start_of
from crawl2chat.figures import Ink, picture
from crawl2chat.runs import Run
from crawl2chat.web.fragments import bar, clip, details, said, section, spoken, table, tiles

EXPLAIN = (
    "What each filter let through and why it dropped the rest. Precision: how many of the pages it dropped deserved "
    "it. Recall: how many of the pages that deserved it were dropped."
)
LANGUAGES = 12  # shown by name; the rest together
BESIDE = "flex:1 1 20rem;min-width:0"  # bars among figures


def crawl(run: Run) -> str:
    """The funnel, lengths, languages, copies, sources, the corpus in tokens, and pages that were dropped."""
    funnel = run.json("data", "funnel.json")
    if funnel is None:
        return ""
    found, corpus = evidence(run), run.json("pretrain", "corpus.json") or {}
    sources = sorted(funnel["sources"].items(), key=lambda item: -item[1])
    return section(
        "From crawl to clean text",
        EXPLAIN,
        counts(run, funnel),
        figures.funnel([(step["step"], step["documents_in"], step["documents"]) for step in funnel["steps"]]),
        steps(funnel, corpus),
        figures.panels(lengths(found["lengths"]), languages(funnel, found["languages"]), copies(funnel)),
        f"<h3>Pages kept, by source</h3>{figures.bars(sources)}" if sources else "",
        ladder(corpus),
        dropped(funnel, found["rejected"]),
    )


def evidence(run: Run) -> dict:
    """The side file; of a run from before there was one, what its rejected pages alone tell."""
    found = run.json("data", "evidence.json")
    return (
        gather(sorted((run.folder / "data" / "rejected").glob("*.jsonl.gz")), []).to_json() if found is None else found
    )


def counts(run: Run, funnel: dict) -> str:
    """Every record accounted for."""
    numbers = run.metrics.get("data", {})
    facts = [(f"{funnel['read']:,}", "records read"), (f"{funnel['kept']:,}", "kept")]
    facts += [(f"{funnel[name]:,}", name) for name in ("rejected", "damaged") if name in funnel]
    facts += [(f"{funnel[name]:,}", f"{what} masked") for name, what in (("emails", "e-mail addresses"),
              ("ips", "IP addresses")) if name in funnel]  # fmt: skip
    rate = numbers.get("pages_per_second_core")
    facts += [(f"{rate:,.0f}", "pages a second a core")] if rate else []
    return tiles(facts)


def steps(funnel: dict, corpus: Mapping) -> str:
    """A row a step. Tokens are bytes of text by the corpus's own bytes a token, so they are an estimate."""
    head = ["step", "kept", "dropped", "of all", "MB left", "tokens, about", "time", "precision", "recall",
            "most frequent reasons"]  # fmt: skip
    ratio = bytes_per_token(corpus, funnel["sources"])
    html = HTML[:-1] if "extraction" in [step["step"] for step in funnel["steps"]] else ()
    rows = []
    for step in funnel["steps"]:
        gone = step["documents_in"] - step["documents"]
        right = ["" if step[key] is None else f"{step[key]:.3f}" for key in ("precision", "recall")]
        reasons = Counter(step["reasons"]).most_common(3)
        why = ", ".join(f"{spoken(reason)} ({count:,})" for reason, count in reasons)
        tokens = said(round(step["bytes"] / ratio)) if ratio and step["step"] not in html else ""
        share, size = f"{100 * step['share']:.1f}\u00a0%", f"{step['bytes'] / 1e6:.1f}"
        spent = f"{step['seconds']:,.1f}\u00a0s"
        rows.append(
            [spoken(step["step"]), f"{step['documents']:,}", f"{gone:,}", share, size, tokens, spent, *right, why]
        )
    shown = [i for i in range(len(head)) if i < 5 or any(row[i] for row in rows)]  # labels and tokens may be unknown
    cells = [[row[i] for i in shown] for row in rows]
    last = len(shown) - (shown[-1] == len(head) - 1)
    return table([head[i] for i in shown], cells, numeric=range(1, last))


def bytes_per_token(corpus: Mapping, sources: Mapping) -> float:
    """Of the web's sources in the corpus, else of all of it; 0 where no tokenizer has read it."""
    parts = corpus.get("sources", {})
    own = [part for name, part in parts.items() if name in sources] or list(parts.values())
    return sum(part["bytes"] for part in own) / max(sum(part["tokens"] for part in own), 1)


def lengths(found: Mapping) -> str:
    """How long pages are, before the filters of text and after them, on a logarithmic scale."""
    bins = {name: {int(number): pages for number, pages in found[name].items()} for name in ("before", "kept")}
    if not bins["kept"]:
        return ""
    low, high = min(min(part) for part in bins.values() if part), max(max(part) for part in bins.values() if part)
    edges = [start_of(number) for number in range(low, high + 2)]

    def draw(figure: Figure, ink: Ink) -> None:
        axes = figure.subplots()
        for name, colour, label in (("before", ink.quiet, "before the filters"), ("kept", ink.series[0], "kept")):
            values = [bins[name].get(number, 0) for number in range(low, high + 1)]
            axes.stairs(
                values, edges, fill=name == "kept", color=colour, alpha=0.55 if name == "kept" else 1, label=label
            )
        axes.set_xscale("log", base=2)
        ticks = [2**power for power in range(0, 31, 2) if edges[0] <= 2**power <= edges[-1]]
        axes.set_xticks(ticks, [f"{tick} B" if tick < 1024 else f"{tick // 1024} kB" for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set_title("pages by length of their text")
        axes.legend(fontsize=9)

    return picture(draw, 4.6, 2.8, "pages by length of their text, before the filters and kept")


def languages(funnel: dict, kept: Mapping[str, int]) -> str:
    """The languages of the pages that reached the language filter."""
    step = next((step for step in funnel["steps"] if step["step"] == "language"), None)
    seen = Counter(funnel.get("languages") or {})
    if step and not seen:
        seen.update({name.removeprefix("language_"): pages for name, pages in step["reasons"].items()})
        seen[" or ".join(sorted(kept)) or "passed"] += step["documents"]
    if not seen:
        return ""
    shown, total = seen.most_common(LANGUAGES), seen.total()
    rest = total - sum(pages for _, pages in shown)
    shown += [("others", rest)] if rest else []
    lines = [
        bar(name, pages / shown[0][1], f"{100 * pages / total:.1f}\u00a0% <small>{pages:,}</small>")
        for name, pages in shown
    ]
    body = f'<h3>Languages before the language filter</h3><div class="bars">{"".join(lines)}</div>'
    return f'<div style="{BESIDE}">{body}</div>'


def copies(funnel: dict) -> str:
    """Clusters of near-duplicates by their size."""
    found = funnel.get("duplicates")
    if not found or not found["clusters"]:
        return ""
    sizes = sorted((int(size), count) for size, count in found["sizes"].items())
    shown = [(f"{size} pages", count) for size, count in sizes[:9]]
    shown += [(f"{sizes[9][0]} pages and more", sum(count for _, count in sizes[9:]))] if len(sizes) > 9 else []
    note = (
        f"{found['clusters']:,} clusters, the largest of {found['largest']:,} pages; {found['removed']:,} pages went, "
        f"{found['missed_by_exact']:,} of them no exact copies."
    )
    body = f'<h3>Clusters of near-duplicates, by size</h3>{figures.bars(shown)}<p class="quiet">{note}</p>'
    return f'<div style="{BESIDE}">{body}</div>'


def ladder(corpus: Mapping) -> str:
    """The whole corpus in bits, bytes and tokens, and the tokens of each source."""
    parts = corpus.get("sources")
    if not parts:
        return ""
    size, tokens = (sum(part[key] for part in parts.values()) for key in ("bytes", "tokens"))
    rungs = [("bits", 8 * size, "of 2 symbols"), ("bytes", size, "of 256 symbols")]
    rungs.append(("tokens", tokens, f"of {corpus['vocabulary']:,} symbols, ours"))
    highest = math.log(1 + 8 * size)
    bars = [
        bar(name, math.log(1 + count) / highest, f"<b>{count:,}</b> <small>{of}</small>") for name, count, of in rungs
    ]
    rows = [
        [spoken(name), *(f"{part[key]:,}" for key in ("documents", "bytes", "tokens")),
         f"{100 * part['tokens'] / max(tokens, 1):.1f}\u00a0%", f"{part['bytes'] / max(part['tokens'], 1):.2f}"]
        for name, part in sorted(parts.items(), key=lambda item: -item[1]["tokens"])
    ]  # fmt: skip
    head = ["source", "documents", "bytes", "tokens", "of all", "bytes a token"]
    title = "<h3>The corpus to train on, in ever larger alphabets</h3>"
    return title + "".join(bars) + table(head, rows, numeric=range(1, 6))


def dropped(funnel: dict, rejected: Mapping[str, Mapping[str, list]]) -> str:
    """Some pages of every reason, folded, in the funnel's order."""
    parts, order = [], [step["step"] for step in funnel["steps"]]
    totals = {(step["step"], reason): count for step in funnel["steps"] for reason, count in step["reasons"].items()}
    for step in sorted(rejected, key=lambda name: order.index(name) if name in order else len(order)):
        for reason, pages in rejected[step].items():
            total = totals.get((step, reason), len(pages))
            body = "".join(
                f"<div class='dropped'><small>{escape(clip(str(page['url']), 90))}{length(page['bytes'])}</small>"
                f"<p>{escape(clip(str(page['start']), 260))}</p></div>"
                for page in pages
            )
            name = f"{step.replace('_', ' ')}: {reason.replace('_', ' ')}"
            many = f"{total:,} page{'s' * (total != 1)}" + (f", {len(pages)} of them" if total > len(pages) else "")
            parts.append(details(f"{name} ({many})", f'<div class="chats">{body}</div>'))
    return f"<h3>Dropped, by reason</h3>{''.join(parts)}" if parts else ""


def length(size: int | None) -> str:
    return f", {size:,} bytes" if isinstance(size, int) else ""
