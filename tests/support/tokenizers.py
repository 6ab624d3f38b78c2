"""Folders with tokenizers of all kinds that models come with, built here and saved as people have them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.trainers import BpeTrainer

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It isn't there, they've gone!",
    "def add(a, b):\n    return a + b  # a sum\n",
    "Straße, naïve café; 東京 and Москва 😀 twice 😀😀.",
    "  two spaces, a\ttab, and an end ",
]


def _byte_level(**options: Any) -> Tokenizer:
    tokenizer = Tokenizer(BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|user|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _byte_fallback() -> Tokenizer:
    """As of Llama 2: pieces with ▁ for a space, and a byte each for characters that there is no piece for."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*"▁abcdefghijklmnopqrstuvwxyz.,!'", "▁t", "th", "▁th", "▁the", "▁a", "▁an", "er", "in", "▁▁"]
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h"), ("▁th", "e"), ("▁", "a"), ("▁a", "n"), ("e", "r"), ("i", "n")]
    vocab = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(BPE(vocab, [*merges, ("▁", "▁")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return tokenizer


def _unigram() -> Tokenizer:
    scores = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("▁a", -3.5), ("ing", -4.0)]
    scores += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz.,!'"]
    tokenizer = Tokenizer(Unigram(scores, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A $B </s>", [("</s>", 2)])
    return tokenizer


def _word_piece() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz.,!'", "the", "there", "n"]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocab = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    return tokenizer


def _word_ends() -> Tokenizer:
    """As of CLIP and OpenAI's first GPT: a word's last piece is marked."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = BpeTrainer(vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _added_of_all_flags() -> Tokenizer:
    tokenizer = _byte_level()
    tokenizer.add_tokens(
        [
            AddedToken("<l>", lstrip=True),
            AddedToken("<r>", rstrip=True),
            AddedToken("<w>", single_word=True),
            AddedToken("<N>", normalized=True),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("<S>", lstrip=True, rstrip=True), AddedToken("<P>", normalized=False)])
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def _truncating() -> Tokenizer:
    tokenizer = _byte_level()
    tokenizer.enable_truncation(8)
    return tokenizer


def _padding() -> Tokenizer:
    tokenizer = _byte_level()
    tokenizer.enable_padding(pad_id=0, pad_token="<|end|>", length=64)
    return tokenizer


def _token(content: str, **flags: bool) -> dict[str, Any]:
    known = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, **known, "special": True, **flags}


KINDS: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any]]] = {
    "byte-level": (_byte_level, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "byte-level-with-bos": (_byte_level, {"bos_token": "<|user|>", "eos_token": "<|end|>", "add_bos_token": True}),
    "byte-fallback": (_byte_fallback, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "byte-fallback-of-llama": (
        _byte_fallback,
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_eos_token": True},
    ),
    "unigram": (_unigram, {"eos_token": "</s>"}),
    "word-piece": (_word_piece, {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}),
    "word-piece-cleaned-up": (_word_piece, {"unk_token": "[UNK]", "clean_up_tokenization_spaces": True}),
    "word-ends": (_word_ends, {"unk_token": "<unk>"}),
    "added-of-all-flags": (_added_of_all_flags, {}),
    "named-by-the-config-alone": (
        _byte_level,
        {
            "added_tokens_decoder": {
                "400": _token("<|im_start|>"),
                "401": _token("<tool>", special=False, normalized=True),
            },
            "additional_special_tokens": ["<|im_start|>", "<|fim|>"],
            "bos_token": {"__type": "AddedToken", **_token("<|begin|>", lstrip=True)},
        },
    ),
    "truncating": (_truncating, {}),
    "padding": (_padding, {"pad_token": "<|end|>"}),
    "special-tokens-are-text": (_byte_level, {"split_special_tokens": True, "eos_token": "<|end|>"}),
}


def save_kind(folder: Path, kind: str) -> str:
    """Saves a tokenizer of this kind into the folder and returns the folder's path."""
    make, config = KINDS[kind]
    make().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if kind == "truncating":
        (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|first|>"}))
    return str(folder)
