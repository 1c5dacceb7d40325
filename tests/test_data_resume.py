"""The data stage under kill -9, of a worker and of the whole stage: the same command ends with the same shards."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2chat.data.config import DataConfig, GopherQuality
from crawl2chat.data.resume import begin_work, identity, name_of_run
from test_data_script import BREAD, CLOCK, RIVER, config, script, warc_record

ROOT = Path(__file__).parents[1]
COUNTRIES = "France Chile Norway Kenya Japan Peru Nepal Ghana Malta Cuba Egypt Spain Qatar Samoa Tonga Fiji".split()

KEEPER = "keeper@clocks-museum.org"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of 16 pages; a third of them are copies."""
    folder = tmp_path_factory.mktemp("web")
    rng, pages = random.Random(0), []
    for number in range(64):
        sentences = [text for text in (RIVER + " " + BREAD + " " + CLOCK).replace("\n", " ").split(". ") if text]
        mine = rng.sample(sentences, 12) if number % 3 else [f"{COUNTRIES[number // 6]} has one."] + sentences[:12]
        text = ". ".join([*mine, f"More is known to {KEEPER}, who keeps the clocks"]) + "."
        pages.append(warc_record(f"https://a.example.org/{number}", text))
    for part in range(4):
        (folder / f"{part}.warc.gz").write_bytes(b"".join(pages[part::4]))
    return folder


def shards(output: Path) -> list[tuple[str, list[dict]]]:
    """Every shard's name and rows, in order."""
    return [(str(f.relative_to(output)), pq.read_table(f).to_pylist()) for f in sorted(output.rglob("*.parquet"))]


def start(web: Path, output: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, ROOT / "scripts/data.py", "--warc", web, "--output_dir", output, "--url_lists", "none"]
    command += [] if "--workers" in flags else ["--workers", "1"]
    command += ["--tasks", "4", "--extraction_timeout", "10", "--drills", "5", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(output: Path, name: str) -> int:
    return len(list(output.glob(f"work/*/logs/{name}/completions/*")))


def wait_for(output: Path, name: str, count: int, process: subprocess.Popen) -> None:
    while finished(output, name) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def left_of(output: Path) -> Iterator[bytes]:
    """What every file below holds, out of its compression where it is whole."""
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        yield path.read_bytes()
        with suppress(OSError, EOFError, pa.ArrowInvalid):
            if path.suffix == ".parquet":
                yield json.dumps(pq.read_table(path).to_pylist()).encode()
            elif path.suffix == ".gz":
                yield gzip.decompress(path.read_bytes())


@pytest.fixture(scope="module")
def undisturbed(web: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    process = start(web, output)
    assert process.wait() == 0, process.communicate()[0]
    return output


slow = pytest.mark.slow
AFTER = [("minhash-buckets", 3), ("write", 1), ("recount", 4)]


@pytest.mark.parametrize("name, count", [("filter", 2), *(pytest.param(*at, marks=slow) for at in AFTER)])
def test_a_stage_that_was_killed_ends_with_the_same_shards(
    name: str, count: int, web: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = start(web, tmp_path / "out")
    wait_for(tmp_path / "out", name, count, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "shards").exists()
    assert KEEPER.encode() not in b"".join(left_of(tmp_path / "out"))
    second = start(web, tmp_path / "out")
    said = second.communicate()[0]
    assert second.returncode == 0, said
    assert f"{name}: " in said and "finished by an earlier start" in said or name == "recount"
    assert shards(tmp_path / "out") == shards(undisturbed)
    ids = [row["id"] for _, rows in shards(tmp_path / "out") for row in rows]
    assert len(ids) == len(set(ids))
    one, other = (json.loads((folder / "funnel.json").read_text()) for folder in (tmp_path / "out", undisturbed))
    assert [one[key] for key in ("read", "kept", "rejected", "damaged")] == [
        other[key] for key in ("read", "kept", "rejected", "damaged")
    ]


@slow
def test_a_worker_that_was_killed_stops_the_stage_and_the_same_command_goes_on(
    web: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = start(web, tmp_path / "out")
    wait_for(tmp_path / "out", "filter", 1, process)
    for child in psutil.Process(process.pid).children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    said = process.communicate()[0]
    assert process.returncode == 1 and "the same command goes on where it stopped" in said
    second = start(web, tmp_path / "out")
    said = second.communicate()[0]
    assert second.returncode == 0 and "tasks were finished by an earlier start" in said
    assert shards(tmp_path / "out") == shards(undisturbed)


@slow
def test_a_changed_recipe_uses_nothing_of_the_old_one(web: Path, tmp_path: Path) -> None:
    process = start(web, tmp_path / "out")
    wait_for(tmp_path / "out", "filter", 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    second = start(web, tmp_path / "out", "--gopher_quality.min_doc_words", "5000")
    said = second.communicate()[0]
    assert "holds unfinished work of another recipe" in said and "earlier start" not in said
    assert second.returncode == 1 and "no document passed the filters" in said
    assert not (tmp_path / "out" / "shards").exists()


def test_the_name_of_a_run_says_recipe_tasks_and_inputs_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.warc"
    file.write_bytes(b"one")
    before = name_of_run(DataConfig(), 4, identity(file))
    assert name_of_run(DataConfig(workers=9, executor="ray", output_dir="x"), 4, identity(file)) == before
    changed = [
        name_of_run(DataConfig(gopher_quality=GopherQuality(min_doc_words=51)), 4, identity(file)),
        name_of_run(DataConfig(), 5, identity(file)),
        name_of_run(DataConfig(), 4, [*identity(file), "b"]),
    ]
    file.write_bytes(b"two")
    os.utime(file, (1, 1))
    changed.append(name_of_run(DataConfig(), 4, identity(file)))
    assert len({before, *changed}) == 5


def test_a_second_start_beside_the_first_is_refused(tmp_path: Path) -> None:
    _, lock = begin_work(tmp_path / "work", "abc")
    code = "import sys; from pathlib import Path; from crawl2chat.data.resume import begin_work; "
    code += f"begin_work(Path({str(tmp_path / 'work')!r}), 'abc')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "another start of this stage is at work" in done.stderr
    lock.release()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_killed_publication_is_made_again_with_its_recital(web: Path, tmp_path: Path, monkeypatch) -> None:
    """The passages are taken out of copies: a second start finds the pages as the first one wrote them."""
    from crawl2chat.data.recital import Recital

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    recital = Recital("web", times=[3], passages=1, shortest=150, longest=2000)
    paragraphs = tmp_path / "set.jsonl"
    texts = [RIVER, BREAD, CLOCK.rpartition("You can")[0]]
    halves = [". ".join(t.split(". ")[:5]) + ".\n" + ". ".join(t.split(". ")[5:]).replace("\n", " ") for t in texts]
    lines = [
        json.dumps({"text": half.replace("\n", " ", half.count("\n") - 1).strip(), "id": str(n)})
        for n, half in enumerate(halves)
    ]
    paragraphs.write_text("\n".join(lines) + "\n")
    knobs = {"dataset_name": str(paragraphs), "recital": recital, "steps": ["language", "minhash", "pii"]}
    script.main(config(tmp_path / "a", **knobs))
    monkeypatch.setattr(script, "publish", die)
    with pytest.raises(Killed):
        script.main(config(tmp_path / "b", **knobs))
    monkeypatch.undo()
    script.main(config(tmp_path / "b", **knobs))
    assert shards(tmp_path / "a" / "out") == shards(tmp_path / "b" / "out")
    one, other = ((tmp_path / name / "out" / "recital.jsonl").read_text() for name in "ab")
    assert one == other and one.count("\n") == 2
