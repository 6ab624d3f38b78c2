"""How much text tokens can stand for, so that what cannot fit is refused before it is tokenized, or made text."""

import json
from array import array
from typing import Any

from tokenizers import Tokenizer

_KEEP_ALL = frozenset({"ByteLevel", "Metaspace", "Digits", "Punctuation", "UnicodeScripts"})
"""Pre-tokenizers that drop nothing of a text, as long as they are not told to."""
_NORMAL_FORMS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase"})
_MAX_SHRINKING = 4
"""Bytes that a normal form may make one of, and an unknown token may stand for: a character of UTF-8 has no more."""


def longest_token(tokenizer: Tokenizer) -> int | None:
    """Most bytes of text that a token stands for; None for a tokenizer that may leave parts of a text out."""
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    shrinking = _shrinking(spec.get("normalizer"))
    if shrinking is None or not _keeps_all(spec.get("pre_tokenizer")) or not _has_all(spec):
        return None
    return shrinking * max([_MAX_SHRINKING, *(len(token.encode()) for token in tokenizer.get_vocab())])


def num_characters(tokenizer: Tokenizer) -> "array[int]":
    """Characters of each token, by its id. A token of one byte counts as one character, and so do holes."""
    vocabulary = tokenizer.get_vocab()
    lengths = array("I", [1]) * (1 + max(vocabulary.values(), default=0))
    for token, token_id in vocabulary.items():
        lengths[token_id] = 1 if token.startswith("<0x") else len(token)
    return lengths


def _shrinking(normalizer: dict[str, Any] | None) -> int | None:
    """How many times fewer bytes a normalizer may make of a text; None where there is no bound."""
    if normalizer is None:
        return 1
    kind = normalizer["type"]
    if kind == "Sequence":
        steps = [_shrinking(step) for step in normalizer["normalizers"]]
        return None if None in steps else max([1, *(step for step in steps if step is not None)])
    if kind in _NORMAL_FORMS:
        return _MAX_SHRINKING
    if kind in ("Prepend", "ByteLevel"):
        return 1
    replaced = normalizer.get("pattern", {}).get("String", "") if kind == "Replace" else ""
    return 1 if replaced and len(normalizer["content"].encode()) >= len(replaced.encode()) else None


def _keeps_all(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return all(map(_keeps_all, pre_tokenizer["pretokenizers"]))
    return pre_tokenizer.get("behavior") != "Removed" and (kind in _KEEP_ALL or kind == "Split")


def _has_all(spec: dict[str, Any]) -> bool:
    """Whether no part of a text is left out, or becomes one unknown token however long it is."""
    if any(token["lstrip"] or token["rstrip"] for token in spec.get("added_tokens", ())):
        return False
    model = spec["model"]
    if model.get("byte_fallback"):
        return True
    if model["type"] != "BPE":
        return False
    of_bytes = '"type": "ByteLevel"' in json.dumps([spec.get("normalizer"), spec.get("pre_tokenizer")])
    return of_bytes or (model.get("unk_token") is not None and not model.get("fuse_unk"))
