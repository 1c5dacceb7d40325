"""The data stage's recipe: where pages come from, FineWeb's steps with their published parameters, where they run.

The defaults are FineWeb's (https://arxiv.org/abs/2406.17557 and datatrove's examples/fineweb.py), which took them from
Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020, section 2.2) and its own ablations. A limit that is null is
not applied.
"""

import re
from dataclasses import dataclass, field

from crawl2chat.data.laptop import EXTRAS
from crawl2chat.data.recital import Recital
from crawl2chat.stage import fail

STEPS = ("url", "extraction", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "pii", "minhash")
SHARE = {"ge": 0, "le": 1}
REMOTE = re.compile(r"(https?|s3|file)://")


def key(default: object, meaning: str, **limits: object) -> object:
    """A field with its meaning and its range."""
    return field(default=default, metadata={"help": meaning, **limits})


@dataclass
class GopherRepetition:
    """Gopher's limits on repeated text, each a share of the page."""

    dup_line_frac: float | None = key(0.30, "lines that stood before", **SHARE)
    dup_para_frac: float | None = key(0.30, "paragraphs that stood before", **SHARE)
    dup_line_char_frac: float | None = key(0.20, "characters in lines that stood before", **SHARE)
    dup_para_char_frac: float | None = key(0.20, "characters in paragraphs that stood before", **SHARE)
    top_2_gram: float | None = key(0.20, "characters in the most frequent 2 words", **SHARE)
    top_3_gram: float | None = key(0.18, "characters in the most frequent 3 words", **SHARE)
    top_4_gram: float | None = key(0.16, "characters in the most frequent 4 words", **SHARE)
    dup_5_grams: float | None = key(0.15, "characters in 5 words that stood before", **SHARE)
    dup_6_grams: float | None = key(0.14, "characters in 6 words that stood before", **SHARE)
    dup_7_grams: float | None = key(0.13, "characters in 7 words that stood before", **SHARE)
    dup_8_grams: float | None = key(0.12, "characters in 8 words that stood before", **SHARE)
    dup_9_grams: float | None = key(0.11, "characters in 9 words that stood before", **SHARE)
    dup_10_grams: float | None = key(0.10, "characters in 10 words that stood before", **SHARE)


@dataclass
class GopherQuality:
    """Gopher's limits on what a page is made of."""

    min_doc_words: int | None = key(50, "fewest words of a page", ge=0)
    max_doc_words: int | None = key(100_000, "most words of a page", ge=1)
    min_avg_word_length: float | None = key(3, "least mean length of a word", ge=0)
    max_avg_word_length: float | None = key(10, "greatest mean length of a word", gt=0)
    max_symbol_word_ratio: float | None = key(0.1, "hashes, and ellipses, to words", ge=0)
    max_bullet_lines_ratio: float | None = key(0.9, "lines that begin with a bullet", **SHARE)
    max_ellipsis_lines_ratio: float | None = key(0.3, "lines that end in an ellipsis", **SHARE)
    max_non_alpha_words_ratio: float | None = key(0.8, "least share of words with a letter in them", **SHARE)
    min_stop_words: int | None = key(2, "different stop words at least", ge=0)
    stop_words: list[str] | None = key(None, "the stop words; null is Gopher's eight")


@dataclass
class C4:
    """C4's rules for lines and pages; FineWeb left out the rule that a line ends in punctuation."""

    filter_no_terminal_punct: bool = key(False, "drop lines that do not end in punctuation")
    min_num_sentences: int = key(5, "fewest sentences of a page; -1 is any", ge=-1)
    min_words_per_line: int = key(3, "fewest words of a line; -1 is any", ge=-1)
    max_word_length: int = key(1000, "drop lines with a word of more characters; -1 is any", ge=-1)
    remove_citations: bool = key(True, "take [1], [edit] and [citation needed] out of lines")
    filter_lorem_ipsum: bool = key(True, "drop pages with `lorem ipsum`")
    filter_javascript: bool = key(True, "drop lines that mention Javascript")
    filter_curly_bracket: bool = key(True, "drop pages with a curly bracket")
    filter_policy: bool = key(True, "drop lines about cookies and terms of use")
    split_paragraph: bool = key(True, "the unit is a line; false: a sentence")


@dataclass
class FineWeb:
    """FineWeb's own filters: lists, menus and navigation."""

    line_punct_thr: float = key(0.12, "least share of lines that end in punctuation", **SHARE)
    line_punct_exclude_zero: bool = key(False, "keep pages without one such line")
    short_line_thr: float = key(0.67, "greatest share of short lines", **SHARE)
    short_line_length: int = key(30, "characters of a short line at most", ge=0)
    char_duplicates_ratio: float = key(0.01, "greatest share of characters in repeated lines", **SHARE)
    new_line_ratio: float = key(0.3, "greatest number of line ends a word", ge=0)


@dataclass
class MinHash:
    """Which pages are near-duplicates: with 14 x 8 hashes, 92 % of the pairs of which 80 % of the 5-grams agree."""

    n_grams: int = key(5, "words of a shingle", ge=1)
    num_buckets: int = key(14, "buckets: agreeing in one is enough", ge=1)
    hashes_per_bucket: int = key(8, "hashes that must all agree", ge=1)
    seed: int = key(1, "of the hash functions", ge=0)


@dataclass
class Pii:
    """What is masked, and by what; replacements are used in turn."""

    remove_emails: bool = key(True, "mask e-mail addresses")
    remove_ips: bool = key(True, "mask IP addresses")
    only_remove_public_ips: bool = key(True, "leave private addresses such as 192.168.0.1")
    email_replacement: list[str] | None = key(None, "null is FineWeb's two")
    ip_replacement: list[str] | None = key(None, "null is FineWeb's six, which answered no one")


@dataclass
class Educational:
    """A classifier's mark of a page, as FineWeb-Edu gives: pages whose rounded score is below the threshold go."""

    model_name_or_path: str = key("HuggingFaceFW/fineweb-edu-classifier", "any transformers sequence classifier")
    threshold: int = key(3, "least score that stays", ge=0)
    batch_size: int = key(32, "pages at once", ge=1)
    max_length: int = key(512, "tokens of a page that are read", ge=8)


@dataclass
class Decontamination:
    """Pages that share words in a row with a benchmark's questions go; counted for each benchmark."""

    benchmarks: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "name -> folder of test.jsonl, a file, owner/set:configuration of the hub", "reads": True},
    )
    n_grams: int = key(13, "words in a row (Brown et al. 2020, appendix C)", ge=1)
    split: str = key("test", "split of a set on the hub")


@dataclass
class Slurm:
    """What every job of `executor: slurm` asks for."""

    partition: str = key("cpu", "partition")
    time: str = key("24:00:00", "time limit of a task")
    cpus_per_task: int = key(1, "CPUs", ge=1)
    mem_per_cpu_gb: int = key(4, "GB a CPU", ge=1)
    qos: str = key("", "quality of service; none where empty")
    max_array_size: int = key(1001, "largest job array of the cluster", ge=1)
    setup: str = key("", "a shell line before the work, such as `source .venv/bin/activate`")


@dataclass
class DataConfig:
    """Where pages come from, which steps they pass, and where they go."""

    output_dir: str | None = key(None, "where everything below is written")
    make_web: bool = key(False, "build the laptop's web under output_dir and read that")
    web_scale: float = key(1.0, "share of the laptop's web to build", gt=0, le=1)
    seed: int = key(0, "of the laptop's web and the drills", ge=0)
    warc: str | None = key(None, "WARC files: a file, a folder or a glob", reads=True)
    warc_paths: str | None = key(None, "or a list of them, one a line: a file or URL of warc.paths.gz", reads=True)
    warc_prefix: str = key("https://data.commoncrawl.org/", "what stands before each line: https://, s3://, file://")
    dump: str | None = key(None, "name of the crawl; null takes CC-MAIN-YYYY-WW out of the path")
    labels: str | None = key(None, "the right answers, labels.jsonl", reads=True)
    on_damage: str = key("refuse", "damaged records", choices=["refuse", "skip"])
    dataset_name: str | None = key(None, "or a folder of shards, or a name on the hub")
    dataset_config: str | None = key(None, "configuration of a dataset on the hub")
    text_column: str = key("text", "the dataset's column that holds the text")
    limit: int | None = key(None, "read at most this many rows of the dataset, or files of warc_paths", gt=0)
    max_page_mb: float = key(5.0, "larger pages are rejected unread (Common Crawl cuts at 5 MiB)", gt=0)
    steps: list[str] = field(default_factory=lambda: list(STEPS), metadata={"help": f"out of {', '.join(STEPS)}"})
    url_lists: str = key("all", "all takes 5 s and 1 GB a worker", choices=["all", "words", "none"])
    url_soft_words: int = key(2, "soft words that make a URL bad", ge=1)
    blocked_domains: list[str] = field(default_factory=list, metadata={"help": "further domains to drop"})
    extraction_timeout: float = key(1.0, "seconds of computing a page may take to extract", gt=0)
    extraction_precision: bool = key(True, "trafilatura's favour_precision")
    languages: list[str] = field(default_factory=lambda: ["en"], metadata={"help": "languages to keep"})
    language_threshold: float = key(0.65, "least language score", **SHARE)
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    c4: C4 = field(default_factory=C4)
    fineweb: FineWeb = field(default_factory=FineWeb)
    filter_timeout: float = key(5.0, "seconds of computing a page may take in all filters", gt=0)
    minhash: MinHash = field(default_factory=MinHash)
    decontamination: Decontamination | None = key(None, "drop pages that hold a benchmark's questions")
    educational: Educational | None = key(None, "drop pages that a classifier marks low")
    pii: Pii = field(default_factory=Pii)
    sources: dict[str, str] = field(default_factory=dict, metadata={"help": "host ending -> source of its pages"})
    default_source: str = key("web", "source of every other page")
    drills: int = key(0, "documents of drill to add, past the filters", ge=0)
    phrasebook: int = key(0, "word lists and dialogues to add likewise", ge=0)
    ships: int = key(0, "made-up ships stated 0, 1, 4, 16 and 64 times, of each", ge=0)
    recital: Recital | None = key(None, "passages to stand there many times")
    executor: str = key("local", "where tasks run", choices=["local", "slurm", "ray"])
    workers: int = key(0, "tasks at once; 0 is one a core", ge=0)
    tasks: int = key(0, "parts of the work, each done anew when it was cut off; 0 is one a worker", ge=0)
    memory_gb: float = key(2.0, "memory to reserve a task, with `executor: ray`", gt=0)
    slurm: Slurm = field(default_factory=Slurm)
    explain: str | None = key(None, "a page's URL or id: tell its fate step by step, and do nothing else")

    def __post_init__(self):
        self.folder = self.output_dir or ""
        if self.explain:
            self.output_dir = None  # a finished run stays as it is

    def chosen(self) -> tuple[str, ...]:
        """The steps that run, in their order; extraction has nothing to do for rows of text."""
        steps = [step for step in STEPS if step in self.steps and not (self.dataset_name and step == "extraction")]
        more = [name for name in ("decontamination", "educational") if getattr(self, name)]
        return (*steps, *more)


def check(config: DataConfig) -> None:
    """Refuse what types and ranges cannot: not exactly one origin, unknown steps, names that are no folder's."""
    origins = [name for name in ("make_web", "warc", "warc_paths", "dataset_name") if getattr(config, name)]
    if len(origins) != 1:
        among = "one of make_web, warc, dataset_name (or warc_paths)"
        fail(f"the recipe has {' and '.join(origins) or 'no pages'}; give {among}")
    if unknown := [step for step in config.steps if step not in STEPS]:
        fail(f"steps: {', '.join(unknown)} unknown; there are {', '.join(STEPS)}")
    for source in [*config.sources.values(), config.default_source]:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", source) or source in EXTRAS:
            fail(f"sources: {source!r} cannot be a folder; use a-z, 0-9, _ and - ({', '.join(EXTRAS)} are taken)")
    for name in ("phrasebook", "ships"):
        if getattr(config, name) and not config.make_web:
            fail(f"{name}: it goes with the facts of the laptop's web; set it to 0 without make_web")
    if config.warc_paths and not REMOTE.match(config.warc_prefix):
        fail(f"warc_prefix: {config.warc_prefix} is no https://, s3:// or file:// address")
    for name in config.decontamination.benchmarks if config.decontamination else ():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            fail(f"decontamination.benchmarks: {name!r} must be letters, digits, _ . and -")
