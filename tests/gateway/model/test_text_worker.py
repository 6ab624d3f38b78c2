"""A process that works on texts: what it makes is what the library makes, and it may die at any moment."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer

from gateway.model.text_worker import TextWorker
from paceline.errors import UnavailableError

TEXT = "def f(x):\n    return 'é😀' + x\n" * 50
_PARENT = """
import os
import sys

import psutil

from gateway.model.text_worker import TextWorker

worker = TextWorker(open(sys.argv[1]).read())
worker.encode("a", add_special_tokens=False, most=None)
print(psutil.Process().children()[0].pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def plain(repository: Path) -> Tokenizer:
    return Tokenizer.from_file(str(repository / "models" / "target" / "tokenizer.json"))


@pytest.fixture
def worker(plain: Tokenizer) -> TextWorker:
    return TextWorker(plain.to_str())


def process_of(worker: TextWorker) -> psutil.Process:
    """The process that works for it."""
    assert worker._process is not None
    return psutil.Process(worker._process.pid)


def test_it_makes_what_the_library_makes(worker: TextWorker, plain: Tokenizer) -> None:
    ids = plain.encode(TEXT).ids
    for most in (None, len(ids)):
        num_tokens, found = worker.encode(TEXT, add_special_tokens=True, most=most)
        assert (num_tokens, found.tolist()) == (len(ids), ids)
    num_tokens, found = worker.encode(TEXT, add_special_tokens=False, most=len(ids) - 1)
    assert (num_tokens, len(found)) == (len(ids), 0)
    assert worker.decode(ids) == plain.decode(ids) == TEXT
    assert worker.encode("", add_special_tokens=False, most=None)[0] == 0


def test_another_takes_the_place_of_one_that_died(worker: TextWorker, plain: Tokenizer) -> None:
    assert worker.decode(plain.encode(TEXT).ids) == TEXT
    before = process_of(worker)
    before.kill()
    before.wait()
    assert worker.decode(plain.encode(TEXT).ids) == TEXT
    assert process_of(worker).pid != before.pid


def test_where_none_lives_that_is_said(worker: TextWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(UnavailableError, match="long texts"):
        worker.encode(TEXT, add_special_tokens=True, most=None)


def test_it_ends_with_whoever_started_it(repository: Path) -> None:
    command = [sys.executable, "-c", _PARENT, str(repository / "models" / "target" / "tokenizer.json")]
    run = subprocess.run(command, cwd=repository, check=False, capture_output=True, text=True)
    pid = int(run.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def test_it_ends_when_nobody_has_it_any_more(plain: Tokenizer) -> None:
    worker = TextWorker(plain.to_str())
    await asyncio.to_thread(worker.encode, TEXT, add_special_tokens=True, most=None)
    process = process_of(worker)
    del worker
    async with asyncio.timeout(20):  # The thread lets go of it in its own time.
        while process.is_running():
            await asyncio.sleep(0.01)
