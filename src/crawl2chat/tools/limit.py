"""How much of a tool's result a model is shown: one limit for every tool, and a line wherever it was reached."""

MAX_RESULT = 400  # characters, the line and what comes after it included
CUT = f"\n... (cut at {MAX_RESULT} characters)"


def shown(text: str, last: str = "") -> str:
    """`text` and `last` as a model is shown them, at most MAX_RESULT characters together.

    Of a longer text the beginning stays, then a line says that it was cut, then comes `last` (an error, a source).
    What was cut once is not cut again.
    """
    if len(text) + len(last) <= MAX_RESULT:
        return text + last
    if len(last) > MAX_RESULT // 2:
        text, last = text + last, ""
    return text[: MAX_RESULT - len(CUT) - len(last)].rstrip() + CUT + last
