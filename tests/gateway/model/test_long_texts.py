"""Long texts hold nobody up, and what cannot fit is refused before it is worked on."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from gateway.model.background import Background
from gateway.model.chat_template import Conversation
from gateway.model.text_bound import longest_token
from gateway.model.tokenizer import ModelTokenizer, TooManyTokensError

T = TypeVar("T")
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
BIG = "def f(x): return x + 1\n" * 20_000
_MEASURED = """
import asyncio
import sys

import psutil

from gateway.model.tokenizer import ModelTokenizer

tokenizer = ModelTokenizer(sys.argv[1])
text = "def f(x): return x + 1\\n" * 180_000


async def main():
    before = psutil.Process().memory_info().rss
    await asyncio.gather(*(tokenizer.encode(text) for _ in range(3)))
    await asyncio.sleep(0.1)
    own = psutil.Process()
    print(len(text), own.memory_info().rss - before, *(child.memory_info().rss for child in own.children()))


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def tokenizer(repository: Path) -> ModelTokenizer:
    return ModelTokenizer(str(repository / "models" / "target"))


async def turns_during(work: Awaitable[T]) -> tuple[T, int]:
    """What comes of it, and how often others had a turn of the event loop until then."""
    num_turns = 0
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0)
        num_turns += 1
    return task.result(), num_turns


async def test_others_have_their_turns_while_a_text_is_tokenized_and_made_text_again(tokenizer: ModelTokenizer) -> None:
    ids, num_turns = await turns_during(tokenizer.encode(BIG))
    assert num_turns > 20
    text, num_turns = await turns_during(tokenizer.decode(ids))
    assert num_turns > 20
    assert text == BIG


async def test_others_have_their_turns_while_a_conversation_of_many_messages_is_rendered(
    tokenizer: ModelTokenizer,
) -> None:
    _, num_turns = await turns_during(tokenizer.encode_chat(Conversation([{"role": "user", "content": ""}] * 20_000)))
    assert num_turns > 20


@given(text=st.text() | st.text("ab 😀é\n\t"))
def test_tokens_are_those_of_the_tokenizer(tokenizer: ModelTokenizer, repository: Path, text: str) -> None:
    plain = Tokenizer.from_file(str(repository / "models" / "target" / "tokenizer.json"))
    assert asyncio.run(tokenizer.encode(text)) == plain.encode(text).ids


async def test_a_text_that_cannot_fit_is_refused_by_its_bytes(tokenizer: ModelTokenizer) -> None:
    with pytest.raises(TooManyTokensError, match="at least"):
        await tokenizer.encode(BIG, most=1000)
    with pytest.raises(TooManyTokensError, match=r"^\d+ tokens$"):
        await tokenizer.encode(BIG, most=50_000)
    assert len(await tokenizer.encode("x = 1\n", most=5)) <= 5


def _of(model: Any, **parts: Any) -> Tokenizer:
    made = Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    return made


@pytest.mark.parametrize(
    ("made", "most"),
    [
        (_of(models.BPE({**BYTES, "abc": 256}, [], byte_fallback=True)), 6),
        (_of(models.BPE({**BYTES, "é" * 5: 256}, [], byte_fallback=True)), 10),
        (_of(models.BPE({**BYTES, "abc": 256}, [], byte_fallback=True), normalizer=normalizers.NFC()), 24),
        (_of(models.BPE(BYTES, [], byte_fallback=True), normalizer=normalizers.Replace(" ", "▁")), 6),
        (_of(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>")), 5),
        (_of(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True)), None),
        (_of(models.BPE({"a": 0}, [])), None),
        (_of(models.BPE({"a": 0}, []), pre_tokenizer=pre_tokenizers.ByteLevel()), 4),
        (_of(models.BPE(BYTES, [], byte_fallback=True), normalizer=normalizers.Strip()), None),
        (_of(models.BPE(BYTES, [], byte_fallback=True), normalizer=normalizers.Replace("  ", " ")), None),
        (_of(models.BPE(BYTES, [], byte_fallback=True), pre_tokenizer=pre_tokenizers.WhitespaceSplit()), None),
        (_of(models.BPE(BYTES, [], byte_fallback=True), pre_tokenizer=pre_tokenizers.Split(" ", "removed")), None),
        (_of(models.BPE(BYTES, [], byte_fallback=True), pre_tokenizer=pre_tokenizers.Split(" ", "isolated")), 6),
        (_of(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")), None),
        (_of(models.Unigram([("a", 0.0)], None, False)), None),
    ],
)
def test_what_a_token_can_stand_for_is_known_where_nothing_of_a_text_is_left_out(
    made: Tokenizer, most: int | None
) -> None:
    assert longest_token(made) == most


async def test_a_text_of_unknown_bound_is_refused_by_its_tokens(tmp_path: Path) -> None:
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    tokenizer = ModelTokenizer(str(tmp_path))
    assert await tokenizer.encode("x" * 100_000, most=3) == [0]
    with pytest.raises(TooManyTokensError, match="4 tokens"):
        await tokenizer.encode("a a a a", most=3)


async def test_few_long_texts_are_worked_on_at_once_also_when_nobody_waits_for_them_any_more() -> None:
    background = Background()
    begun: list[int] = []
    go = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        go.wait(20)
        return number

    tasks = [asyncio.create_task(background.run(work, number)) for number in range(4)]
    while len(begun) < 2:
        await asyncio.sleep(0)
    for task in tasks[:2]:
        task.cancel()
    await asyncio.gather(*tasks[:2], return_exceptions=True)
    assert begun == [0, 1]
    go.set()
    assert await asyncio.gather(*tasks[2:]) == [2, 3]


def test_what_long_texts_took_is_given_back(repository: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _MEASURED, str(repository / "models" / "target")]
    run = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True)
    num_bytes, kept, *apart = map(int, run.stdout.split())
    assert num_bytes > 4_000_000
    assert kept < 100e6
    assert apart
    assert max(apart) < 200e6
