import pytest

from crawl2chat.strategies import PHRASES, counts


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Wait, wait. WAIT!", {"wait": 3}),
        ("The waiter awaits.", {}),
        ("Let me check. Let\nme double-check, then verify.", {"let me": 2, "check": 3}),
        ("Alternatively, go back and backtrack; a backpack.", {"alternatively": 1, "back": 2}),
        ("Hmm, hm... hmmm. Thmm.", {"hmm": 3}),
        ("That is wrong: a mistake. However, an error.", {"mistake": 3, "however": 1}),
        ("Checkers and outlet men", {}),
        ("The answer is 12.", {}),
        ("", {}),
    ],
)
def test_phrases_are_counted_as_whole_words_in_any_case(text, expected):
    assert counts([text]) == {name: float(expected.get(name, 0)) for name in PHRASES}


def test_counts_are_means_per_reply():
    assert counts(["wait", "wait wait", "", ""])["wait"] == 0.75


def test_no_replies_have_no_counts():
    with pytest.raises(ValueError, match="no replies"):
        counts([])
