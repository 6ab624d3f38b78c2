"""Promise 1: the tokens of a request never depend on the draft. Through all services, over real gRPC."""

import asyncio
import random

import pytest

from paceline.v1 import sampling_pb2
from support.system import System, start_system

PARAMETERS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
    {"temperature": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {5: 2.0, 9: -3.0}},
]


async def _all(system: System, *, speculation: bool, **more: object) -> list[list[int]]:
    rng = random.Random(7)
    prompts = ["".join(rng.choice("abcdef ()=:\n") for _ in range(rng.randrange(1, 60))) for _ in range(6)]
    replies = await asyncio.gather(
        *(
            system.generate(prompt, seed=seed, max_tokens=40, speculation=speculation, **parameters, **more)
            for prompt in prompts[:3]
            for seed, parameters in enumerate(PARAMETERS)
        )
    )
    return [reply.token_ids for reply in replies]


async def test_on_equals_off_equals_another_draft_equals_none(
    target_folder: str, draft_folder: str, random_folder: str
) -> None:
    async with start_system(target_folder) as alone:
        expected = await _all(alone, speculation=True)
    assert len({tuple(tokens) for tokens in expected}) > len(PARAMETERS)
    for drafts in ([target_folder], [draft_folder], [random_folder]):
        async with start_system(target_folder, drafts) as system:
            assert await _all(system, speculation=True) == expected
            assert await _all(system, speculation=False) == expected
            assert await _all(system, speculation=True, max_draft_tokens=1) == expected
            assert await _all(system, speculation=True, max_draft_tokens=13) == expected


async def test_a_perfect_draft_is_accepted_and_a_random_one_is_not(target_folder: str, random_folder: str) -> None:
    async with start_system(target_folder, [target_folder]) as system:
        usage = (await system.generate("def f(", seed=1, max_tokens=100, ignore_eos=True)).usage
    assert usage.num_accepted_tokens == usage.num_drafted_tokens > 0
    assert usage.num_rounds == 100 - usage.num_accepted_tokens
    async with start_system(target_folder, [random_folder]) as system:
        usage = (await system.generate("def f(", seed=1, max_tokens=60, ignore_eos=True)).usage
    assert usage.num_accepted_tokens <= 0.3 * usage.num_drafted_tokens
    assert usage.num_rounds == 60 - usage.num_accepted_tokens


async def test_a_request_without_a_seed_says_its_seed_and_can_be_replayed(system: System) -> None:
    first = await system.generate("x = ", max_tokens=30)
    again = await system.generate("x = ", max_tokens=30, seed=first.started.seed)
    other = await system.generate("x = ", max_tokens=30)
    assert again.token_ids == first.token_ids
    assert other.started.seed != first.started.seed
    assert other.token_ids != first.token_ids


async def test_choices_take_derived_seeds_and_choice_0_the_seed_itself(system: System) -> None:
    alone = await system.generate("a", seed=5, max_tokens=20)
    several = await system.generate("a", seed=5, max_tokens=20, n=4)
    assert several.token_ids == alone.token_ids
    assert sorted(several.finish_reasons) == [0, 1, 2, 3]
    assert several.usage.num_completion_tokens > alone.usage.num_completion_tokens


async def test_usage_and_finish_reasons_are_right(system: System) -> None:
    prompt = "hello world"
    reply = await system.generate(prompt, seed=3, max_tokens=17, ignore_eos=True)
    assert reply.started.num_prompt_tokens == reply.usage.num_prompt_tokens == len(prompt)
    assert len(reply.token_ids) == reply.usage.num_completion_tokens == 17
    assert reply.finish_reasons == {0: sampling_pb2.FINISH_REASON_LENGTH}
    assert 0 < reply.usage.time_to_first_token_seconds <= reply.usage.total_seconds


async def test_logprobs_come_one_a_token_and_do_not_depend_on_speculation(system: System) -> None:
    async def logprobs(speculation: bool) -> list[tuple[float, list[tuple[int, float]]]]:
        entries = []
        async for event in system.client.generate(
            "abc", seed=2, max_tokens=12, logprobs=3, ignore_eos=True, speculation=speculation
        ):
            assert len(event.delta.logprobs) == len(event.delta.token_ids)
            entries += [(e.logprob, [(t.token_id, t.logprob) for t in e.top]) for e in event.delta.logprobs]
        return entries

    on, off = await logprobs(True), await logprobs(False)
    assert on == off
    assert len(on) == 12
    assert all(len(top) == 3 and top[0][1] >= top[1][1] >= top[2][1] for _, top in on)
    assert all(logprob <= top[0][1] + 1e-6 for logprob, top in on)


@pytest.mark.parametrize("speculation", [True, False])
async def test_a_context_that_is_full_ends_the_text(system: System, speculation: bool) -> None:
    reply = await system.generate([5] * 500, seed=1, ignore_eos=True, speculation=speculation)
    assert len(reply.token_ids) == 12
    assert reply.finish_reasons == {0: sampling_pb2.FINISH_REASON_LENGTH}
