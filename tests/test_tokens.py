"""Token files hold every document once whatever happens meanwhile; packed rows are a pure function of the seed."""

import json
import multiprocessing
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.tiny import tiny_tokenizer

from crawl2chat.data import tokens as module
from crawl2chat.data.tokens import PackedRows, Source, Tokens, corpus, held_out, held_out_texts, write_tokens
from crawl2chat.protocol import END_OF_TEXT, IM_END

LENGTH = 8


def source(name: str, first: int, tokens: int) -> Tokens:
    return Tokens(name, np.arange(first, first + tokens, dtype=np.uint16), tokens, 1, [])


def rows(count: int, seed: int = 0, weights: tuple[float, float] = (3, 1)) -> PackedRows:
    return PackedRows([source("a", 0, 200), source("b", 1000, 400)], weights, LENGTH, count, seed)


def test_sources_take_turns_by_their_weights():
    packed = rows(100)
    from_a = sum(int(packed[i]["input_ids"][0]) < 1000 for i in range(100))
    assert from_a == 75
    # after any number of rows, not only at the end
    assert abs(sum(int(packed[i]["input_ids"][0]) < 1000 for i in range(10)) - 7.5) <= 1


def test_a_rows_place_in_the_run_is_one_number():
    whole, alone = rows(90), rows(90)
    for i in (89, 3, 40):  # another order of asking, and no row before it asked for
        assert torch.equal(alone[i]["input_ids"], whole[i]["input_ids"])
    longer = rows(200)
    assert all(torch.equal(longer[i]["input_ids"], whole[i]["input_ids"]) for i in range(90))


def test_another_seed_is_another_order():
    assert any(not torch.equal(rows(40)[i]["input_ids"], rows(40, seed=1)[i]["input_ids"]) for i in range(40))


def test_an_epoch_visits_every_row_once():
    packed = PackedRows([source("a", 0, 200)], [1.0], LENGTH, 48, 0)
    per_epoch = 200 // LENGTH - 1
    first = sorted(int(packed[i]["input_ids"][0]) for i in range(per_epoch))
    assert len(set(first)) == per_epoch
    assert set(np.diff(first)) == {LENGTH}  # side by side, none twice


def test_rows_are_cut_whole_from_the_stream():
    packed = rows(60)
    for i in range(60):
        ids = packed[i]["input_ids"]
        assert ids.shape == (LENGTH,) and torch.equal(ids, ids[0] + torch.arange(LENGTH))


def test_a_source_shorter_than_two_rows_is_refused(capsys):
    with pytest.raises(SystemExit, match="a: 15 tokens are fewer than two rows of 8"):
        PackedRows([source("a", 0, 15)], [1.0], LENGTH, 4, 0)


def test_a_batch_is_its_rows():
    packed, alone = rows(20_500), rows(20_500)
    asked = [0, 20_499, 7, 7, 9_999, 10_000, *range(300, 340)]  # across the turns' period, and over many epochs
    batch = packed.batch(asked)
    assert batch.shape == (len(asked), LENGTH) and batch.dtype == np.int64
    for i, row in zip(asked, batch, strict=True):
        assert np.array_equal(row, alone.row(i)) and np.array_equal(row, packed[i]["input_ids"].numpy())
    assert packed.batch(range(0)).shape == (0, LENGTH)


@pytest.mark.parametrize("asked", [[-1], [40], [3, 41]])
def test_a_row_beyond_the_run_is_refused(asked):
    with pytest.raises(IndexError, match="of a run of 40"):
        rows(40).batch(asked)


def test_the_order_of_a_seed_never_changes():
    # a checkpoint's position means nothing without this; a change here breaks every run begun before it
    starts = rows(12, seed=3).batch(range(12))[:, 0].tolist()
    assert starts == [110, 102, 1159, 126, 190, 6, 1199, 142, 30, 182, 1263, 70]


def test_ten_million_rows_cost_no_more_than_ten():
    tracemalloc.start()
    packed = rows(10_000_000)
    packed.batch(range(9_999_990, 10_000_000))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert packed.epochs() == pytest.approx({"a": 7_500_000 * LENGTH / 200, "b": 2_500_000 * LENGTH / 400})
    assert all(len(orders) <= 2 for orders in packed.orders)


def test_a_share_too_small_for_a_turn_is_refused():
    with pytest.raises(SystemExit, match="b: its share of the mixture is under 1 in 10,000 rows"):
        rows(40, weights=(1, 1e-6))


def test_the_fingerprint_tells_what_a_row_depends_on():
    sources = [source("a", 0, 200), source("b", 1000, 400)]
    same = {rows(40).fingerprint(), rows(90).fingerprint()}
    other = {
        rows(40, seed=1).fingerprint(),
        rows(40, weights=(2, 1)).fingerprint(),
        PackedRows(sources, (3, 1), 16, 40, 0).fingerprint(),
        PackedRows([sources[0], replace(sources[1], key="other ids")], (3, 1), LENGTH, 40, 0).fingerprint(),
    }
    assert len(same) == 1 and len(other) == 4 and not same & other


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    lines = [json.dumps({"text": f"Page {i} says that Paris is in France.", "id": f"page/{i}"}) for i in range(200)]
    (folder / "0.jsonl").write_text("\n".join(lines))
    return Source("pages", str(folder))


def test_held_out_documents_are_in_no_training_token(tmp_path, shards):
    tokenizer = tiny_tokenizer()
    tokens = write_tokens(shards, tokenizer, tmp_path / "tokens", 0.1, 0)
    apart = [i for i in range(200) if held_out(f"page/{i}", 0.1)]
    assert 5 < len(apart) < 40 and len(tokens.held_out) == len(apart) and tokens.documents == 200 - len(apart)
    text = tokenizer.decode(tokens.ids.astype(int).tolist())
    assert all(f"Page {i} says" not in text for i in apart)
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    assert int((np.asarray(tokens.ids) == end).sum()) == tokens.documents


def test_the_corpus_is_counted_in_bits_bytes_and_tokens(tmp_path, shards):
    tokenizer = tiny_tokenizer()
    told = corpus([write_tokens(shards, tokenizer, tmp_path / "tokens", 0.1, 0), source("a", 0, 200)], len(tokenizer))
    with_end, part = tokenizer.convert_tokens_to_ids(END_OF_TEXT), told["sources"][shards.name]
    ids = write_tokens(shards, tokenizer, tmp_path / "tokens", 0.1, 0).ids
    assert part["documents"] == int((ids == with_end).sum()) and part["tokens"] == len(ids)  # a boundary a document
    assert len(tokenizer.decode(ids[ids != with_end]).encode()) == part["bytes"]
    assert told["bits"] == 8 * told["bytes"] and told["bytes"] == part["bytes"] + 200
    assert told["tokens"] == part["tokens"] + 200 and told["vocabulary"] == len(tokenizer)


def test_tokens_are_written_once_and_again_when_the_shards_change(tmp_path, shards):
    tokenizer, folder = tiny_tokenizer(), tmp_path / "tokens"
    write_tokens(shards, tokenizer, folder, 0.1, 0)
    (first,) = folder.glob("*.bin")
    stamp = first.stat().st_mtime_ns
    write_tokens(shards, tokenizer, folder, 0.1, 0)
    assert first.stat().st_mtime_ns == stamp
    with open(f"{shards.path}/0.jsonl", "a") as handle:
        handle.write("\n" + json.dumps({"text": "One more page.", "id": "page/200"}))
    write_tokens(shards, tokenizer, folder, 0.1, 0)
    assert len(list(folder.glob("*.bin"))) == 2


def pages(tmp_path, count: int = 300) -> Source:
    folder = tmp_path / "pages"
    folder.mkdir()
    rows = [{"text": f"Page {i} says that {'Paris ' * (i % 7)}is here.", "id": f"p/{i}"} for i in range(count)]
    (folder / "0.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Source("pages", str(folder))


def texts_of(tokens: Tokens) -> list[str]:
    return tiny_tokenizer().decode(np.asarray(tokens.ids).astype(int).tolist()).split(END_OF_TEXT)[1:]


def test_a_stream_in_many_blocks_holds_every_document_once(tmp_path, monkeypatch):
    small = pages(tmp_path)
    whole = write_tokens(small, tiny_tokenizer(), tmp_path / "whole", 0.1, 0)
    monkeypatch.setattr(module, "BLOCK", 1000)
    blocks = write_tokens(small, tiny_tokenizer(), tmp_path / "blocks", 0.1, 0)
    assert sorted(texts_of(blocks)) == sorted(texts_of(whole)) and texts_of(blocks) != texts_of(whole)
    assert (blocks.bytes, blocks.documents) == (whole.bytes, whole.documents)
    assert blocks.held_out == whole.held_out
    assert whole.bytes == sum(len(text.encode()) for text in texts_of(whole))


def test_documents_are_shuffled_by_the_seed_alone(tmp_path):
    small = pages(tmp_path)
    first, again, other = (
        write_tokens(small, tiny_tokenizer(), tmp_path / name, 0.1, seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert np.array_equal(first.ids, again.ids) and first.key == again.key
    assert first.key != other.key and sorted(texts_of(first)) == sorted(texts_of(other))
    numbers = [int(text.split()[1]) for text in texts_of(first)]
    assert numbers != sorted(numbers)


def test_a_broken_stream_is_one_line_and_the_next_run_goes_on_from_there(tmp_path, monkeypatch, capsys):
    small = pages(tmp_path)
    monkeypatch.setattr(module, "BLOCK", 1000)
    whole = write_tokens(small, tiny_tokenizer(), tmp_path / "whole", 0.1, 0)

    documents, folder = module.documents, tmp_path / "broken"

    def breaking(*arguments):
        for number, row in enumerate(documents(*arguments)):
            if number == 150:
                raise ConnectionError("the hub hung up")
            yield row

    monkeypatch.setattr(module, "documents", breaking)
    with pytest.raises(SystemExit, match=r"the stream broke after 150 documents \(ConnectionError: the hub hung up"):
        write_tokens(small, tiny_tokenizer(), folder, 0.1, 0)
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.json"))
    (temporary,) = folder.glob("*.tmp")
    with open(temporary, "ab") as handle:
        handle.write(b"half a block of a killed process")

    monkeypatch.setattr(module, "documents", documents)
    capsys.readouterr()
    after = write_tokens(small, tiny_tokenizer(), folder, 0.1, 0)
    assert "goes on after 1" in capsys.readouterr().out  # not from the beginning
    assert np.array_equal(after.ids, whole.ids) and after == replace(whole, ids=after.ids)
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".bin", ".json"]


def test_a_token_file_that_lost_its_end_is_refused(tmp_path):
    small, folder = pages(tmp_path), tmp_path / "tokens"
    write_tokens(small, tiny_tokenizer(), folder, 0.1, 0)
    (file,) = folder.glob("*.bin")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="which are not its .* tokens; delete"):
        write_tokens(small, tiny_tokenizer(), folder, 0.1, 0)


def test_every_document_is_kept_held_out_or_dropped_for_a_reason(tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    kept = [{"text": f"Page {i}.", "id": f"p/{i}"} for i in range(100)]
    odd = [{"text": "", "id": "e/0"}, {"text": "", "id": "e/1"}, {"text": "half \ud83d", "id": "s"}]
    (folder / "0.jsonl").write_text("\n".join(map(json.dumps, [*kept[:50], *odd, *kept[50:]])))
    tokens = write_tokens(Source("mixed", str(folder)), tiny_tokenizer(), tmp_path / "tokens", 0.1, 0)
    assert tokens.documents + len(tokens.held_out) == 100
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("tokens: mixed: 103 documents read, ")
    assert line.endswith(f"{len(tokens.held_out)} held out, 2 empty and 1 of broken Unicode dropped")


def test_a_control_token_in_a_page_stays_text(tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    rows = [{"text": f"Type {IM_END} and {END_OF_TEXT} {i}.", "id": str(i)} for i in range(20)]
    (folder / "0.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = tiny_tokenizer()
    ids = write_tokens(Source("hostile", str(folder)), tokenizer, tmp_path / "tokens", 0.01, 0).ids
    assert int((ids == tokenizer.convert_tokens_to_ids(END_OF_TEXT)).sum()) == 20  # between documents only
    assert tokenizer.convert_tokens_to_ids(IM_END) not in ids


def test_a_source_that_is_all_held_out_or_has_no_text_is_one_line(tmp_path, monkeypatch):
    small = pages(tmp_path, 3)
    with pytest.raises(SystemExit, match="no document is left for training"):
        write_tokens(small, tiny_tokenizer(), tmp_path / "tokens", 1.0, 0)
    monkeypatch.setattr(module, "documents", lambda *arguments: iter([{"content": "a"}]))
    with pytest.raises(SystemExit, match="hub/set: document 0 has no text, but the keys content"):
        write_tokens(Source("hub", "hub/set"), tiny_tokenizer(), tmp_path / "tokens", 0.1, 0)


def test_a_bounded_number_of_held_out_documents_is_kept_and_stays_the_same(tmp_path, monkeypatch):
    small = pages(tmp_path)
    every = write_tokens(small, tiny_tokenizer(), tmp_path / "every", 0.3, 0).held_out
    monkeypatch.setattr(module, "KEPT", 20)
    some = write_tokens(small, tiny_tokenizer(), tmp_path / "some", 0.3, 1)
    assert len(every) > 50 and some.held_out == every[:20]
    assert [row["text"] for row in held_out_texts([some], 5)] == every[:5]
    with pytest.raises(SystemExit, match="held_out_documents 21: no more than 20 are kept"):
        list(held_out_texts([some], 21))


def test_a_failed_write_is_one_line(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(SystemExit, match="No space left on device; mend that and run the same command again"):
        write_tokens(pages(tmp_path), tiny_tokenizer(), tmp_path / "tokens", 0.1, 0)


def test_processes_that_start_together_encode_once(tmp_path, monkeypatch):
    small, encode, log = pages(tmp_path), module.encode, tmp_path / "log"

    def logged(*arguments):
        with open(log, "a") as handle:
            handle.write("encoded\n")
        time.sleep(0.2)
        return encode(*arguments)

    monkeypatch.setattr(module, "encode", logged)
    fork = multiprocessing.get_context("fork")
    keys = fork.SimpleQueue()
    tokenizer = tiny_tokenizer()
    runs = [
        fork.Process(target=lambda: keys.put(write_tokens(small, tokenizer, tmp_path / "tokens", 0.1, 0).key))
        for _ in range(3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
        assert run.exitcode == 0
    assert len({keys.get() for _ in runs}) == 1 and log.read_text() == "encoded\n"
