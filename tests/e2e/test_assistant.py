"""The assistant answers as `transformers` has it answer, token for token, with its draft, another one and without."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from gateway.model.chat_template import Conversation
from gateway.model.tokenizer import ModelTokenizer
from paceline import Message
from paceline.v1.sampling_pb2 import FINISH_REASON_EOS, FINISH_REASON_LENGTH
from services.local.model_files import draft_folder_of, folder_of, shipped_draft
from services.local.pair import ASSISTANT
from support.assistant import CHATS, NUM_TOKENS, expected, prompt_of, user
from support.system import Reply, System, collect, start_system
from support.tiny import save_noisy

pytestmark = pytest.mark.asyncio(loop_scope="module")
STORY = user("Tell me a long story about a lighthouse keeper and her cat.")
NO_SPECULATION = {"speculation": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The target, its draft, and another one: the same with noise on its weights."""
    target = asyncio.run(folder_of(ASSISTANT))
    shipped = shipped_draft(ASSISTANT)
    assert shipped is not None
    draft = asyncio.run(draft_folder_of(shipped, target))
    return {"target": target, "shipped": draft, "another": save_noisy(tmp_path_factory.mktemp("another"), draft)}


@asynccontextmanager
async def system_with(folders: dict[str, str], draft: str) -> AsyncIterator[System]:
    """The assistant in float32 with a draft."""
    async with start_system(folders["target"], [folders[draft]], {"kv_bytes": 64 << 20}) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def assistant(folders: dict[str, str]) -> AsyncIterator[System]:
    """The assistant with its draft, once for all tests: what an engine of its size takes is not given back."""
    async with system_with(folders, "shipped") as system:
        yield system


async def answer(system: System, messages: list[Message], **options: object) -> Reply:
    options = {"temperature": 0, "max_tokens": NUM_TOKENS, **options}
    return await collect(system.client.chat(messages, **options))


async def check_answers(system: System, chats: Sequence[list[Message]]) -> None:
    """That they are those of `transformers`, and that a draft proposed some of their tokens."""
    drafted = 0
    for messages in chats:
        reply, off = await answer(system, messages), await answer(system, messages, **NO_SPECULATION)
        assert (reply.token_ids, reply.text) == expected(messages, reply.token_ids)
        assert (off.token_ids, off.text) == (reply.token_ids, reply.text)
        ends = reply.token_ids[-1] == 2
        assert reply.finish_reasons[0] == (FINISH_REASON_EOS if ends else FINISH_REASON_LENGTH)
        assert len(reply.token_ids) == NUM_TOKENS or ends
        assert off.usage.num_drafted_tokens == 0
        drafted += reply.usage.num_drafted_tokens
    assert drafted > 0


async def test_answers_are_those_of_transformers(assistant: System) -> None:
    await check_answers(assistant, CHATS)


async def test_another_draft_changes_no_answer(folders: dict[str, str]) -> None:
    async with system_with(folders, "another") as system:
        await check_answers(system, CHATS[::3])


async def test_prompts_are_those_of_the_chat_template(folders: dict[str, str], assistant: System) -> None:
    tokenizer = ModelTokenizer(folders["target"])
    for messages in CHATS:
        ids = await tokenizer.encode_chat(Conversation([dict(message) for message in messages]))
        assert ids == prompt_of(messages)
        reply = await answer(assistant, messages, max_tokens=1)
        assert reply.usage.num_prompt_tokens == len(ids)


async def test_sampled_answers_are_the_same_without_the_draft(assistant: System) -> None:
    for seed, temperature in enumerate((0.3, 0.7, 1.0)):
        options = {"temperature": temperature, "seed": seed, "max_tokens": 64}
        on = await answer(assistant, STORY, **options)
        off = await answer(assistant, STORY, **options, **NO_SPECULATION)
        assert on.token_ids == off.token_ids
        assert on.text == off.text


async def test_answers_side_by_side_are_those_that_they_are_alone(assistant: System) -> None:
    replies = await asyncio.gather(*(answer(assistant, messages) for messages in CHATS))
    for reply, messages in zip(replies, CHATS, strict=True):
        assert (reply.token_ids, reply.text) == expected(messages, reply.token_ids)


async def test_characters_come_whole(assistant: System) -> None:
    said = "Repeat exactly: 👩‍👩‍👧‍👦 naïve 日本語 🌞"
    events = assistant.client.chat(user(said), temperature=1.0, seed=5, max_tokens=96)
    pieces = [event.delta.text async for event in events]
    assert any(pieces)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


async def test_the_draft_is_right_often(assistant: System) -> None:
    reply = await answer(assistant, STORY, max_tokens=96)
    assert reply.usage.num_accepted_tokens > 96 // 10
