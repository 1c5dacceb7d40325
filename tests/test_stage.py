"""How a stage ends: numbers only, whole files only, one line."""

import json

import pytest

from crawl2chat.stage import fail, finish, peak_memory_gb, write_text


def test_finish_writes_flat_numbers_with_time_and_memory(tmp_path, capsys):
    finish(tmp_path / "stage", {"loss": 1.5, "rows": 3}, read="a", wrote="b", headline="c")
    metrics = json.loads((tmp_path / "stage" / "metrics.json").read_text())
    assert metrics["loss"] == 1.5 and metrics["rows"] == 3
    assert metrics["seconds"] > 0 and metrics["peak_memory_gb"] > 0
    assert "read a | wrote b | c |" in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.5", None, {"nested": 1}])
def test_a_value_that_is_no_finite_number_leaves_no_metrics(tmp_path, value):
    with pytest.raises(ValueError, match="loss must be a finite number"):
        finish(tmp_path, {"loss": value}, read="", wrote="", headline="")
    assert not list(tmp_path.iterdir())


def test_fail_is_one_line_and_a_non_zero_exit():
    with pytest.raises(SystemExit) as stop:
        fail("first\n  second")
    assert stop.value.code == "error: first second"


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    write_text(path, "old")

    def broken(_descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError):
        write_text(path, "new and longer")
    assert path.read_text() == "old"


def test_peak_memory_counts_this_process():
    assert 0.005 < peak_memory_gb() < 100
