"""Phrases in which a model checks, doubts and turns back, counted as in DeepSeek-R1's figures.

DeepSeek-AI 2025, arXiv:2501.12948, figures on reflective words over training. Words only: a reply that says "wait" has
not thought again for that, so read the counts beside accuracy and length.
"""

import re
from collections.abc import Sequence

PHRASES = {
    "wait": r"wait",
    "check": r"(?:double[- ]|re-?)?check(?:s|ed|ing)?|verif(?:y|ies|ied|ying|ication)",
    "alternatively": r"alternatively|another (?:way|approach)",
    "let me": r"let me",
    "back": r"back|backtrack(?:s|ed|ing)?",
    "hmm": r"h+m+",
    "mistake": r"mistakes?|mistaken|wrong|errors?",
    "however": r"however",
}
PATTERNS = {
    name: re.compile(rf"(?<!\w)(?:{phrase})(?!\w)".replace(" ", r"\s+"), re.IGNORECASE)
    for name, phrase in PHRASES.items()
}


def counts(texts: Sequence[str]) -> dict[str, float]:
    """For each phrase of PHRASES, how often a reply says it: whole words, any case, the mean over `texts`.

    Raises ValueError for no texts.
    """
    if not texts:
        raise ValueError("no replies: there is nothing to count phrases in")
    return {name: sum(len(one.findall(text)) for text in texts) / len(texts) for name, one in PATTERNS.items()}
