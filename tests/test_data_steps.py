"""FineWeb's steps as the recipe sets them, a classifier's marks, decontamination, masks, what duplicates are told."""

import gzip
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from crawl2chat.data import filters
from crawl2chat.data.config import DataConfig, Decontamination, Educational, GopherRepetition, MinHash, Pii
from crawl2chat.data.contamination import Decontaminate, build_index, question_of
from crawl2chat.data.dedup import MinHashStages
from crawl2chat.data.executors import Workers
from crawl2chat.data.steps import Masks, Rejected
from crawl2chat.recipe import load_recipe
from test_data_script import BREAD, CLOCK, RIVER, ROOT, config, rows, script
from test_pipeline import Bin
from tiny import tiny_tokenizer


def test_the_recipes_defaults_are_datatroves_published_ones() -> None:
    made = filters.page_filters(DataConfig(url_lists="none"), Path("nowhere"))
    published = {
        "gopher_repetition": GopherRepetitionFilter(), "gopher_quality": GopherQualityFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=False), "fineweb": FineWebQualityFilter(),
    }  # fmt: skip
    own = {"stats", "exclusion_writer", "language", "seconds"}
    for step, theirs in published.items():
        knobs = {name: value for name, value in vars(theirs).items() if name not in own}
        assert {name: vars(made[step])[name] for name in knobs} == knobs, step


def test_the_reference_recipe_names_every_published_number() -> None:
    recipe = load_recipe(*script.RECIPE, args=[str(ROOT / "recipes" / "common-crawl" / "data.yaml")]).configs[0]
    assert recipe.steps == DataConfig().steps
    for name in ("gopher_repetition", "gopher_quality", "c4", "fineweb", "minhash", "pii"):
        assert getattr(recipe, name) == getattr(DataConfig(), name)
    text = (ROOT / "recipes" / "common-crawl" / "data.yaml").read_text()
    numbers = {item.name for item in fields(GopherRepetition)} | {"min_doc_words", "line_punct_thr", "n_grams: 5"}
    assert all(name in text for name in numbers)


@pytest.mark.parametrize("flag, complaint", [
    ("--gopher_repetition.top_2_gram=1.5", "at most 1"), ("--minhash.num_buckets=0", "at least 1"),
    ("--fineweb.new_line=0.3", "new_line_ratio"), ("--gopher_quality.min_doc_words=few", "whole number"),
])  # fmt: skip
def test_a_limit_out_of_range_or_misspelled_is_refused(flag: str, complaint: str, capsys) -> None:
    with pytest.raises(SystemExit):
        load_recipe(*script.RECIPE, args=["--warc", "x", flag])
    try:
        load_recipe(*script.RECIPE, args=["--warc", "x", flag])
    except SystemExit as refused:
        assert complaint in str(refused)


def test_every_limit_can_be_moved_and_taken_away() -> None:
    text = Document("Buy cheap watches online today, the best cheap watches. " * 20, "", metadata={})
    strict = filters.Repetition(GopherRepetition(), None)
    loose = filters.Repetition(GopherRepetition(**dict.fromkeys(vars(GopherRepetition()), None)), None)
    assert strict.filter(text)[0] is False and loose.filter(text) is True
    short = DataConfig(url_lists="none", steps=["gopher_quality"])
    short.gopher_quality.min_doc_words = 5
    step = filters.page_filters(short, Path("nowhere"))["gopher_quality"]
    assert step.filter(Document("The bridge and the river have a boat.", "", metadata={})) is True


def test_only_the_steps_that_are_asked_for_are_made_and_no_list_is_read_for_the_others(monkeypatch) -> None:
    monkeypatch.setattr(filters.Urls, "__init__", lambda *_: pytest.fail("the URL lists"))
    recipe = DataConfig(steps=["pii", "c4", "language"], educational=Educational())
    assert list(filters.page_filters(recipe, Path("nowhere"))) == ["language", "c4"]
    assert recipe.chosen() == ("language", "c4", "pii", "educational")


# a classifier


def classifier(folder: Path, planted: bool, labels: int = 1) -> str:
    """A tiny BERT without layers; planted: texts that begin with `The` get 4, others 0."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    shape = BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=0, num_attention_heads=1,
                       intermediate_size=8, num_labels=labels, max_position_embeddings=600)  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(shape)
    if planted:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            embeddings = model.bert.embeddings
            embeddings.word_embeddings.weight[tokenizer("The river").input_ids[0], 0] = 1
            embeddings.LayerNorm.weight.fill_(1)
            model.bert.pooler.dense.weight[0, 0] = 9
            model.classifier.weight[-1, 0] = 4 if labels == 1 else 50
            if labels > 1:
                model.classifier.bias[0] = 9
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("labels, mark", [(1, 4.0), (6, 5.0)])
def test_pages_that_a_planted_classifier_marks_low_go(labels: int, mark: float, tmp_path: Path) -> None:
    where = classifier(tmp_path / "model", planted=True, labels=labels)
    step = filters.Marks(Educational(where, threshold=3, batch_size=2), bin := Bin())
    texts = ["The river begins.", "A river.", "The old mill.", "Buy now!", "The end"]
    kept = list(step.run(Document(text, text, metadata={}) for text in texts))
    assert [document.id for document in kept] == [text for text in texts if text.startswith("The")]
    assert all(abs(document.metadata["score"] - mark) < 0.01 for document in kept)
    assert {document.metadata["filter_reason"] for document in bin.documents} == {"score_0"}


def test_any_classifier_gives_the_same_marks_whatever_the_batch(tmp_path: Path) -> None:
    where = classifier(tmp_path / "model", planted=False)
    marks = []
    for batch in (1, 3):
        documents = [Document(text, text, metadata={}) for text in (RIVER, "A", BREAD, CLOCK * 9)]
        list(filters.Marks(Educational(where, 0, batch, 64), Bin()).run(documents))
        marks.append([document.metadata["score"] for document in documents])
    assert np.allclose(*marks, atol=1e-5)


def test_a_classifier_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(SystemExit, match="educational.model_name_or_path: .* no sequence classifier"):
        list(filters.Marks(Educational(str(tmp_path / "model")), Bin()).run([Document("a", "a", metadata={})]))


# decontamination


def test_pages_that_hold_a_benchmarks_question_go_and_each_benchmark_is_told_of(tmp_path: Path) -> None:
    asked = "How many miles does the river drop steeply through a narrow valley before the old mills"
    long = {"prompt": [{"role": "user", "content": asked}], "answer": "ten"}
    (tmp_path / "run" / "sums").mkdir(parents=True)
    (tmp_path / "run" / "sums" / "test.jsonl").write_text(
        json.dumps(long) + "\n" + '{"prompt": "1 + 1", "answer": "2"}\n'
    )
    sentence = " ".join(CLOCK.split()[10:40])
    pq.write_table(
        pa.Table.from_pylist([{"question": sentence.upper()}, {"question": sentence}]), tmp_path / "b.parquet"
    )
    recipe = Decontamination({"ours": str(tmp_path / "run"), "clocks": str(tmp_path / "b.parquet")})
    told = build_index(recipe, tmp_path / "index")
    assert [(told[name].questions, told[name].too_short) for name in ("ours", "clocks")] == [(2, 1), (2, 0)]
    step = Decontaminate(tmp_path / "index", 13, bin := Bin())
    texts = {
        "river": RIVER,
        "asks": RIVER + "\n" + asked.upper() + "?",
        "clock": CLOCK,
        "cut": sentence[: len(sentence) // 3],
    }
    kept = list(step.run(Document(text, name, metadata={}) for name, text in texts.items()))
    assert [document.id for document in kept] == ["river", "cut"]
    assert [d.metadata["filter_reason"] for d in bin.documents] == ["contaminated_ours", "contaminated_clocks"]
    assert json.loads((tmp_path / "index" / "met" / "00000.json").read_text()) == [[0, 0, 1], [1, 0, 1], [1, 1, 1]]


def test_all_text_of_a_row_is_its_question_but_names_and_ids() -> None:
    row = {"id": "q1", "prompt": [{"role": "user", "content": "One"}], "choices": {"text": ["a", "b"], "n": [1, 2]}}
    assert question_of(row).split() == ["One", "a", "b"]


@pytest.mark.parametrize("content, complaint", [("", "holds no questions"), ("{not json}\n", "not rows of JSON")])
def test_a_benchmark_that_cannot_be_read_is_one_line(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=complaint):
        build_index(Decontamination({"x": str(tmp_path)}), tmp_path / "index")


def test_marks_and_benchmarks_stand_in_the_funnel_of_a_run(tmp_path: Path) -> None:
    where = classifier(tmp_path / "model", planted=True)
    (tmp_path / "held.jsonl").write_text(json.dumps({"question": " ".join(CLOCK.split()[20:50])}) + "\n")
    (tmp_path / "set").mkdir()
    table = [{"text": " ".join(text.split()), "id": name} for name, text in PAGES.items()]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "set" / "a.parquet")
    knobs = {"educational": Educational(where), "steps": ["language", "minhash", "pii"]}
    knobs |= {"decontamination": Decontamination({"clocks": str(tmp_path / "held.jsonl")})}
    script.main(config(tmp_path, dataset_name=str(tmp_path / "set"), **knobs))
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    order = ["read", "language", "pii", "minhash", "decontamination", "educational"]
    assert [step["step"] for step in funnel["steps"]] == order
    assert [step["documents"] for step in funnel["steps"]] == [4, 4, 4, 3, 2, 1]
    assert funnel["contamination"] == {"clocks": {"questions": 1, "too_short": 0, "pages": 1, "found": 1}}
    assert funnel["steps"][5]["reasons"] == {"score_0": 1}
    (row,) = rows(tmp_path / "out")
    assert row["id"] in ("river", "again") and abs(row["score"] - 4) < 0.01
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["contamination/clocks/found"] == 1


PAGES = {"river": RIVER, "again": RIVER, "bread": BREAD, "clock": CLOCK}


# addresses

ADDRESSES = ["jane.doe@mail.example.net", "o'neil+x@sub.domain.org", "91.198.174.192", "8.8.8.8", "jane@[8.8.4.4]"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([*ADDRESSES, "192.168.0.1", "word", " ", "\n", "\t", "(", ")", ",", "@", ".", "é", "\u00a0"]),
        max_size=25,
    )
)
def test_texts_are_masked_as_by_datatrove(parts: list[str]) -> None:
    assert Masks().format("".join(parts)) == PIIFormatter().format("".join(parts))


def test_copies_of_a_page_stay_copies_when_they_are_masked() -> None:
    copies = [Document(f"Ask {ADDRESSES[0]}.", str(number), metadata={}) for number in range(3)]
    assert {page.text for page in Masks().run(iter(copies))} == {"Ask email@example.com."}


def test_an_address_in_a_run_without_blanks_is_masked_too() -> None:
    masks = Masks()
    text = "x=" * 3000 + ";jane.doe@mail.example.net;" + "y=" * 3000
    assert masks.format(text) == text.replace("jane.doe@mail.example.net", "email@example.com").replace(
        "x=" * 3000 + ";", "x=" * 3000 + ";"
    )
    assert masks.emails_replacer.count == 1


def test_what_is_masked_and_by_what_is_the_recipes() -> None:
    text = "jane@mail.example.net at 8.8.8.8 or 10.0.0.1"
    assert (
        Masks(**vars(Pii(remove_ips=False, email_replacement=["<mail>"]))).format(text).startswith("<mail> at 8.8.8.8")
    )
    assert "10.0.0.1" not in Masks(**vars(Pii(only_remove_public_ips=False))).format(text)


def test_no_address_is_left_in_any_output_and_the_masks_are_counted(tmp_path: Path) -> None:
    """In pages that stay, in pages that go at every step, in URLs, cut by the sample's end or written as HTML."""
    secret = "jane.q.public@mail.example.net"
    table = [
        {"text": RIVER + f" Write to {secret} or to 91.198.174.192.", "id": "kept", "url": f"https://a.org/?to={secret}"},
        {"text": RIVER + f" Write to {secret} or to 91.198.174.192.", "id": "copy", "url": "https://a.org/2"},
        {"text": f"{secret} 91.198.174.192 " * 3, "id": "short", "url": "https://91.198.174.192/3"},
        {"text": "x " * 237 + secret + " word" * 999, "id": "cut", "url": "https://a.org/jane.q.public%40mail.example.net"},
        {"text": "x " * 237 + secret.replace("@", "&#64;") + " y" * 999, "id": "entity", "url": "https://a.org/5"},
        {"text": "\n" * 19_990 + secret + " word" * 999, "id": "late", "url": "https://a.org/6"},
    ]  # fmt: skip
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "set" / "a.parquet")
    script.main(config(tmp_path, dataset_name=str(tmp_path / "set")))
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["documents_kept"], metrics["emails_masked"], metrics["ips_masked"]) == (1, 3, 2)  # with the copy's
    assert len(rows(out)) == 1 and "email@example.com" in rows(out)[0]["text"]
    for file in (path for path in out.rglob("*") if path.is_file()):
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
        if file.suffix == ".parquet":
            raw = json.dumps(pq.read_table(file).to_pylist()).encode()
        assert b"jane.q" not in raw and b"91.198.174" not in raw, file
    with gzip.open(next((out / "rejected").glob("minhash-*")), "rt") as lines:
        assert json.loads(next(lines))["id"] in ("kept", "copy")


class Breaks(PipelineStep):
    type, name = "test", "breaks"

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> object:
        for document in [Document("Write to " + "@".join(["jane.q.public", "mail.example.net"]), "", metadata={})]:
            yield document.text.index("nowhere")


def test_a_log_shows_no_page_when_a_step_breaks(tmp_path: Path) -> None:
    with Workers(1, tmp_path / "logs") as workers, pytest.raises(SystemExit, match="broke: ValueError: substring not"):
        workers.run("filter", [Breaks()], 1)
    logs = [path.read_bytes() for path in (tmp_path / "logs").rglob("*") if path.is_file()]
    assert any(b"substring not found" in log for log in logs) and not any(b"jane.q" in log for log in logs)


# duplicates


def test_duplicates_are_told_by_clusters_and_against_equal_texts(tmp_path: Path) -> None:
    """Clusters of (3: two equal and one alike) and (2 equal) pages; one page is alone."""
    alike = RIVER.replace("four hundred", "five hundred")
    texts = [RIVER, RIVER, alike, BREAD, BREAD, CLOCK]
    (tmp_path / "set").mkdir()
    table = [{"text": " ".join(text.split()), "id": str(n)} for n, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "set" / "a.parquet")
    script.main(config(tmp_path, dataset_name=str(tmp_path / "set"), steps=["minhash"], workers=2))
    told = json.loads((tmp_path / "out" / "funnel.json").read_text())["duplicates"]
    assert (told["clusters"], told["pages"], told["largest"], told["sizes"]) == (2, 5, 3, {"2": 1, "3": 1})
    assert (told["removed"], told["exact"], told["missed_by_exact"]) == (3, 2, 1) and told["memory_gb"] > 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["duplicates/missed_by_exact"] == 1 and metrics["documents_kept"] == 3


def test_hashes_are_compared_in_parts_that_fit_into_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("crawl2chat.data.dedup.AT_ONCE", 3)
    stages = MinHashStages(MinHash(), tmp_path)
    for folder in ("duplicates", "texts"):
        (tmp_path / folder).mkdir()
    hashes = np.array([[1, 2, 2, 3, 9], [3, 3, 4, 5, 1]], "<u8")
    for rank in range(2):
        hashes[rank].tofile(tmp_path / "texts" / f"{rank:05d}.u8")
        np.array([[n, 2] for n in range(4)], "<u4").tofile(tmp_path / "duplicates" / f"{rank:06d}.sizes")
    assert stages.different(8) == 5
    told = stages.report(Workers(1, tmp_path / "logs"))
    assert (told.clusters, told.pages, told.removed, told.exact, told.missed_by_exact) == (4, 8, 4, 3, 1)


def test_the_start_of_a_rejected_page_is_masked_before_it_is_cut(tmp_path: Path) -> None:
    writer = Rejected(tmp_path, "language")
    assert writer.start("a " * 240 + "jane@mail.example.net").endswith("email@example.com"[:20])
    assert writer.start("jane@mail.example.net " * 900).count("@example.") > 5 and len(writer.start("x" * 9999)) == 500
