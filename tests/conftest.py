"""Tests run offline, on one thread a process, and leave no run folder behind in the checkout."""

import os
import socket
from pathlib import Path

import pytest

os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "src")  # for the scripts that tests start
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """A test that reaches for another machine fails at once, by name."""
    connect = socket.socket.connect

    def local_only(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test reached for {address[0]}: tests run offline")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
