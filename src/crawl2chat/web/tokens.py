"""The coloured token view: every token of a text in a colour of its own, those that bear loss marked."""

from html import escape

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

# of neighbouring tokens, on a light page and on a dark one
COLOURS = ("#fde2c8", "#d3e9fb", "#dcf2d3", "#f9d8e6", "#e4dcf7", "#fbf3c0", "#cdeeea", "#e9e2d6")
DARK = ("#553414", "#173f5c", "#25492a", "#5a2440", "#3f2f66", "#4d430f", "#12494a", "#433d33")
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}

STYLE = f"""
:root {{ --word: #222222; --loss: #c0392b; {" ".join(f"--t{i}: {colour};" for i, colour in enumerate(COLOURS))} }}
@media screen and (prefers-color-scheme: dark) {{
:root {{ --word: #f1f3f5; --loss: #ff8a75; {" ".join(f"--t{i}: {colour};" for i, colour in enumerate(DARK))} }}
}}
{" ".join(f".t{i} {{ background: var(--t{i}); }}" for i in range(len(COLOURS)))}
"""
STYLE += """
.tokens { font: 15px/1.9 ui-monospace, Menlo, Consolas, monospace; color: var(--word); }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span { border-radius: 3px; padding: 2px 0; }
.tokens .quiet { background: none; opacity: .8; }
.tokens .loss { box-shadow: inset 0 -3px var(--loss); }
.tokens .control { font-weight: 600; outline: 1px solid #8886; }
.tokens .raw { font-size: 80%; font-style: italic; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tokens</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font-family: system-ui, sans-serif; }}
:root {{ color-scheme: light dark; }}
table {{ border-collapse: collapse; }} td {{ padding: .15rem 1rem .15rem 0; }} td + td {{ text-align: right; }}
details {{ margin-top: 1.5rem; }} pre {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
{style}
</style>
</head>
<body>
<h1>Tokens</h1>
<table>{rungs}</table>
<p>{legend}</p>
{view}
<details><summary>ids</summary><pre>{ids}</pre></details>
</body>
</html>
"""


def _shown(token_id: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """HTML of one token's text; a token that is part of a character is shown as its bytes."""
    text = tokenizer.decode([token_id])
    if "\ufffd" in text:
        token = tokenizer.convert_ids_to_tokens(token_id) or ""
        if all(character in BYTES for character in token):
            return '<span class="raw">' + "".join(f"\\x{BYTES[character]:02x}" for character in token) + "</span>"
    text = escape(text).replace("\t", "⇥\t")
    return text.replace("\r", "␍").replace("\n", "⏎\n")


def token_view(ids: list[int], tokenizer: PreTrainedTokenizerBase, mask: list[int] | None = None) -> str:
    """HTML fragment of `ids`, a coloured span each; with `mask`, those that bear loss (1) are underlined.

    The page that holds it brings STYLE. Text inside is escaped. Raises ValueError for a mask of another length.
    """
    if mask is not None and len(mask) != len(ids):
        raise ValueError(f"{len(ids)} ids but {len(mask)} mask values")
    control = set(tokenizer.get_added_vocab().values())
    spans = []
    for i, token_id in enumerate(ids):
        names = [f"t{i % len(COLOURS)}"] + (["control"] if token_id in control else [])
        if mask is not None:
            names.append("loss" if mask[i] else "quiet")
        spans.append(f'<span class="{" ".join(names)}" title="{token_id}">{_shown(token_id, tokenizer)}</span>')
    return f'<div class="tokens">{"".join(spans)}</div>'


def token_page(
    ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    mask: list[int] | None = None,
    rungs: dict[str, int] | None = None,
) -> str:
    """The whole page: the ladder's `rungs` as a table, the token view, and the ids."""
    rows = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{n:,}</td></tr>" for name, n in (rungs or {}).items()
    )
    legend = f"{len(ids):,} tokens."
    if mask is not None:
        legend = f"{len(ids):,} tokens; the {sum(mask):,} underlined ones bear loss."
    view = token_view(ids, tokenizer, mask)
    return PAGE.format(style=STYLE, rungs=rows, legend=legend, view=view, ids=" ".join(map(str, ids)))
