"""The corpus: the Python source of the running interpreter's standard library.

Nothing is downloaded. Whole files are held out for evaluation, chosen by a hash of their path, so that every run on the
same Python version agrees on them. Tests and codec tables are as large as the library itself and far more repetitive;
one in `MINOR_SHARE` of them is kept.
"""

import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

HELD_OUT_SHARE = 32
MINOR_SHARE = 4
MINOR_FOLDERS = frozenset({"test", "tests", "idle_test", "encodings"})
SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__"})

Tokens = npt.NDArray[np.uint16]


class Document(NamedTuple):
    """One source file: its path inside the standard library and its text."""

    path: str
    text: str


class Corpus(NamedTuple):
    """Documents to learn from and documents never trained on."""

    train: list[Document]
    held_out: list[Document]


def load_corpus() -> Corpus:
    """Read and split the standard library; exact duplicates are dropped."""
    train: list[Document] = []
    held_out: list[Document] = []
    seen: set[str] = set()
    for document in _documents(Path(sysconfig.get_path("stdlib"))):
        if document.text in seen:
            continue
        seen.add(document.text)
        bucket = _bucket(document.path)
        if bucket % HELD_OUT_SHARE == 0:
            held_out.append(document)
        elif not _is_minor(document.path) or bucket // HELD_OUT_SHARE % MINOR_SHARE == 0:
            train.append(document)
    return Corpus(train, held_out)


def encode_stream(documents: list[Document], tokenizer: PreTrainedTokenizerFast, seed: int) -> Tokens:
    """All documents as one stream, in shuffled order, each preceded by the end-of-text token."""
    order = np.random.default_rng(seed).permutation(len(documents))
    encoded = tokenizer([documents[i].text for i in order], add_special_tokens=False, verbose=False)["input_ids"]
    boundary = np.array([tokenizer.eos_token_id], dtype=np.uint16)
    return np.concatenate([part for ids in encoded for part in (boundary, np.array(ids, dtype=np.uint16))])


class Windows:
    """Windows of a stream in an order that is a pure function of the seed: a resumed run sees the same batches."""

    def __init__(self, stream: Tokens, seed: int) -> None:
        self._stream = stream
        self._seed = seed

    def batch(self, first_token: int, num_windows: int, length: int) -> npt.NDArray[np.int64]:
        """The windows due after `first_token` tokens, [num_windows, length + 1]: inputs and, shifted by one, labels."""
        per_epoch = (len(self._stream) - 1) // length
        rows = []
        for index in range(first_token // length, first_token // length + num_windows):
            epoch, within = divmod(index, per_epoch)
            start = int(self._order(epoch, per_epoch, length)[within]) * length
            rows.append(self._stream[start : start + length + 1])
        return np.stack(rows).astype(np.int64)

    def _order(self, epoch: int, per_epoch: int, length: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self._seed, length, epoch]).permutation(per_epoch)


def _documents(root: Path) -> Iterator[Document]:
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        try:
            with tokenize.open(path) as source:
                text = source.read()
        except (SyntaxError, UnicodeDecodeError):
            continue  # test data that is broken on purpose
        if text.strip():
            yield Document(relative.as_posix(), text)


def _bucket(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")


def _is_minor(path: str) -> bool:
    return not MINOR_FOLDERS.isdisjoint(Path(path).parts)
