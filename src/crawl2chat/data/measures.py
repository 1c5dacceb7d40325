"""What each filter measures of a page, in words: "31 words, 50 wanted".

The filters themselves give one reason and no number. Each function here goes through one filter's rules in its order,
with the recipe's limits and datatrove's own arithmetic; the first rule that is broken is the filter's reason.
"""

import re
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass

from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import (
    find_all_duplicate,
    find_duplicates,
    find_top_duplicate,
    get_n_grams,
)
from datatrove.pipeline.filters.url_filter import normalize, normalizer
from datatrove.utils.text import PUNCTUATION_SET, split_into_sentences, split_into_words

from crawl2chat.data.filters import C4Lines, Language, Lists, Quality, Repetition, Urls


@dataclass
class Measure:
    """One rule: the reason it gives, whether the page breaks it, and what was measured against which limit."""

    reason: str
    broken: bool
    said: str


def at_most(reason: str, value: float, limit: float | None, what: str) -> Iterator[Measure]:
    """A rule with an upper limit; datatrove takes 0 and None for no limit."""
    if limit:
        yield Measure(reason, value > limit, f"{number(value)} {what}, at most {number(limit)} allowed")


def at_least(reason: str, value: float, limit: float | None, what: str) -> Iterator[Measure]:
    if limit:
        yield Measure(reason, value < limit, f"{number(value)} {what}, {number(limit)} wanted")


def number(value: float) -> str:
    """Two digits behind the point, or as many as it takes to tell it from a round number."""
    return f"{value:,}" if float(value).is_integer() and value > 1 or value in (0, 1) else f"{value:.4g}"


def urls(step: Urls, document: Document) -> Iterator[Measure]:
    url = document.metadata.get("url")
    if not url:
        return
    parts, words = step.tldextractor(url), set(normalizer.split(url))
    for reason, host in (("domain", parts.top_domain_under_public_suffix), ("subdomain", parts.fqdn)):
        listed = host in step.block_listed_domains
        yield Measure(reason, listed, f"{host or 'no host'} is {'' if listed else 'not '}among the blocked domains")
    listed = url in step.block_listed_url
    yield Measure("url", listed, f"the URL is {'' if listed else 'not '}among the blocked ones")
    hard = sorted(words & step.banned_words)
    yield Measure("hard_blacklisted", bool(hard), f"{named(hard, 'banned word')}, none allowed")
    soft, limit = sorted(words & step.soft_banned_words), step.soft_word_threshold
    yield Measure("soft_blacklisted", len(soft) >= limit, f"{named(soft, 'soft word')}, fewer than {limit} allowed")
    inside = next(step.banned_subwords_automaton.iter(normalize(url)), None) if step.banned_subwords else None
    yield Measure("blacklisted_subword", bool(inside), f"{'a' if inside else 'no'} banned word inside another word")


def named(words: list[str], what: str) -> str:
    return f"{len(words)} {what}{'s' * (len(words) != 1)}" + (f" ({', '.join(words)})" if words else "")


def language(step: Language, document: Document) -> Iterator[Measure]:
    """From what the filter has written into the page's metadata."""
    found, wanted = document.metadata.get("language"), " or ".join(step.languages)
    if found is None:
        yield Measure("language_none", True, "not one letter")
        return
    score = document.metadata["language_score"]
    other = found not in step.languages
    yield Measure(f"language_{found}", other, f"language {found} with score {score:.4f}, {wanted} wanted")
    yield Measure("language_unsure", score <= step.threshold, f"score {score:.4f}, above {step.threshold} wanted")


def repetition(step: Repetition, document: Document) -> Iterator[Measure]:
    text = document.text
    if not text:
        yield Measure("empty", True, "no text")
        return
    for kind, units, name in (
        ("para", step.paragraph_exp.split(text.strip()), "paragraphs"),
        ("line", step._line_splitter.split(text), "lines"),
    ):
        count, characters = find_duplicates(units)
        share, limit = count / len(units), getattr(step, f"dup_{kind}_frac")
        yield from at_most(f"dup_{kind}_frac", share, limit, f"of {name} stood before")
        share, limit = characters / len(text), getattr(step, f"dup_{kind}_char_frac")
        yield from at_most(f"dup_{kind}_char_frac", share, limit, f"of characters are in {name} that stood before")
    words = split_into_words(text, step.language)
    for n, limit in step.top_n_grams:
        grams = get_n_grams(words, n)
        if grams:
            share = find_top_duplicate(grams) / len(text)
            said = f"{number(share)} of characters are in the most frequent {n} words, at most {number(limit)} allowed"
            yield Measure(f"top_{n}_gram", share > limit, said)
    for n, limit in step.dup_n_grams:
        share = find_all_duplicate(words, n) / len(text)
        said = f"{number(share)} of characters are in {n} words that stood before, at most {number(limit)} allowed"
        yield Measure(f"duplicated_{n}_n_grams", share > limit, said)


def quality(step: Quality, document: Document) -> Iterator[Measure]:
    text, words = document.text, split_into_words(document.text, step.language)
    lengths = [len(word) for word in words if any(sign not in PUNCTUATION_SET for sign in word)]
    yield from at_least("gopher_short_doc", len(lengths), step.min_doc_words, "words")
    yield from at_most("gopher_long_doc", len(lengths), step.max_doc_words, "words")
    mean = sum(lengths) / len(lengths) if lengths else float("nan")
    yield from at_least("gopher_below_avg_threshold", mean, step.min_avg_word_length, "letters a word")
    yield from at_most("gopher_above_avg_threshold", mean, step.max_avg_word_length, "letters a word")
    ratio = step.max_symbol_word_ratio
    yield from at_most("gopher_too_many_hashes", text.count("#") / len(words), ratio, "# a word")
    dots = text.count("...") + text.count("…")
    yield from at_most("gopher_too_many_ellipsis", dots / len(words), ratio, "ellipses a word")
    lines = text.splitlines()
    bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
    yield from at_most("gopher_too_many_bullets", bullets, step.max_bullet_lines_ratio, "of lines begin with a bullet")
    ends = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
    limit, what = step.max_ellipsis_lines_ratio, "of lines end in an ellipsis"
    yield from at_most("gopher_too_many_end_ellipsis", ends, limit, what)
    letters = sum(any(sign.isalpha() for sign in word) for word in words) / len(words)
    limit, what = step.max_non_alpha_words_ratio, "of words have a letter in them"
    yield from at_least("gopher_below_alpha_threshold", letters, limit, what)
    stops = len(step.stop_words & set(words))
    yield from at_least("gopher_enough_stop_words", stops, step.min_stop_words, "different stop words")


def c4(step: C4Lines, document: Document) -> Iterator[Measure]:
    """The rules for pages one by one, each over the lines that the rules for lines leave."""

    def verdict(**rules: object) -> tuple[object, Document]:
        other, page = copy(step), Document(document.text, document.id, metadata={})
        off = {"min_num_sentences": -1, "filter_lorem_ipsum": False, "filter_curly_bracket": False}
        for name, value in (off | rules).items():
            setattr(other, name, value)
        return C4QualityFilter.filter(other, page), page

    found = verdict(filter_lorem_ipsum=step.filter_lorem_ipsum, filter_curly_bracket=step.filter_curly_bracket)[0]
    for reason, on, mark in (
        ("lorem_ipsum", step.filter_lorem_ipsum, "lorem ipsum"),
        ("curly_bracket", step.filter_curly_bracket, "{"),
    ):
        if on:
            broken = found == (False, reason)
            count = document.text.lower().count(mark)
            yield Measure(reason, broken, f"`{mark}` stands there {number(count)} times, not at all wanted")
            if broken:
                return
    text = verdict()[1].text
    lines = text.splitlines() if step.split_paragraph else split_into_sentences(text, step.language)
    kept = (
        sum(len(split_into_sentences(line, step.language)) for line in lines) if step.split_paragraph else len(lines)
    )
    if step.min_num_sentences != -1:
        said = f"{kept} sentences in the {len(lines)} lines that stay, {step.min_num_sentences} wanted"
        yield Measure("too_few_sentences", kept < step.min_num_sentences, said)


def lists(step: Lists, document: Document) -> Iterator[Measure]:
    text = document.text
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        yield Measure("empty", True, "no text")
        return
    ratio = sum(line.endswith(step.stop_chars) for line in lines) / len(lines)
    broken = ratio < step.line_punct_thr and not (ratio == 0 and step.line_punct_exclude_zero)
    said = f"{number(ratio)} of lines end in punctuation, {number(step.line_punct_thr)} wanted"
    yield Measure("line_punct_ratio", broken, said)
    ratio = sum(len(line) <= step.short_line_length for line in lines) / len(lines)
    limit, length = step.short_line_threshold, step.short_line_length
    said = f"{number(ratio)} of lines have {length} characters or fewer, at most {number(limit)} allowed"
    yield Measure("short_line_ratio", ratio > limit, said)
    ratio, limit = find_duplicates(lines)[1] / len(text.replace("\n", "")), step.char_duplicates_ratio
    said = f"{number(ratio)} of characters are in repeated lines, at most {number(limit)} allowed"
    yield Measure("char_dup_ratio", ratio > limit, said)
    ratio, limit = text.count("\n") / len(split_into_words(text, step.language)), step.new_line_ratio
    said = f"{number(ratio)} line ends a word, at most {number(limit)} allowed"
    yield Measure("list_ratio", ratio > limit, said)


RULES: dict[str, Callable[..., Iterator[Measure]]] = {
    "url": urls,
    "language": language,
    "gopher_repetition": repetition,
    "gopher_quality": quality,
    "c4": c4,
    "fineweb": lists,
}


def measure(name: str, step: object, document: Document) -> list[Measure]:
    """What the step `name` measured of the page, up to the rule that it breaks; all that can be, of one that breaks
    the filter itself. `document` is as it came to the step, with the language that the filter found.
    """
    found: list[Measure] = []
    try:
        for rule in RULES[name](step, document):
            found.append(rule)
            if rule.broken:
                break
    except (ArithmeticError, AssertionError, LookupError, RecursionError, TypeError, ValueError, re.error):
        pass  # so does the filter, and its verdict says so
    return found
