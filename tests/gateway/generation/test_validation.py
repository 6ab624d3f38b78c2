"""What a request may ask for, and what it gets where it does not say."""

from typing import Any

import pytest

from gateway.generation.validation import Request, check_prompt_bytes, check_prompt_tokens, check_request
from paceline.errors import InvalidArgumentError
from paceline.v1 import inference_pb2, sampling_pb2


@pytest.fixture(params=[inference_pb2.GenerateRequest, inference_pb2.ChatRequest])
def kind(request: pytest.FixtureRequest) -> type[Request]:
    made: type[Request] = request.param
    return made


def test_defaults_are_filled_in(kind: type[Request]) -> None:
    parameters = check_request(kind(), 256, 7)
    assert parameters[1:-1] == ((), (), True, 1, 0, 7)
    assert parameters.sampling.HasField("seed")
    assert parameters.sampling.seed != check_request(kind(), 256, 7).sampling.seed


def test_what_is_given_is_taken_and_the_request_is_not_changed(kind: type[Request]) -> None:
    request = kind(
        sampling={
            "seed": 3,
            "stop": ["a", "b"],
            "temperature": 0.5,
            "bad_words": ["c"],
            "skip_special_tokens": False,
            "stop_token_ids": [4],
            "min_tokens": 99,
        },
        n=4,
        priority=-2,
        speculation={"max_draft_tokens": 3},
    )
    before = request.SerializeToString(deterministic=True)
    parameters = check_request(request, 256, 7)
    assert parameters[1:-1] == (("a", "b"), ("c",), False, 4, -2, 3)
    assert parameters.applied == request.sampling
    assert (list(parameters.sampling.stop_token_ids), parameters.sampling.min_tokens) == ([4], 99)
    assert list(parameters.sampling.bad_words) == []
    assert not parameters.sampling.HasField("skip_special_tokens")
    assert (parameters.sampling.seed, parameters.sampling.temperature) == (3, 0.5)
    assert list(parameters.sampling.stop) == []
    assert request.SerializeToString(deterministic=True) == before


def test_the_authors_parameters_hold_where_the_request_is_silent(kind: type[Request]) -> None:
    defaults = sampling_pb2.SamplingParams(temperature=0.6, top_k=20, max_tokens=30)
    parameters = check_request(kind(sampling={"temperature": 0.0, "seed": 1}), 256, 7, defaults)
    expected = sampling_pb2.SamplingParams(temperature=0.0, top_k=20, max_tokens=30, seed=1)
    assert parameters.sampling == parameters.applied == expected
    longer = check_request(kind(sampling={"min_tokens": 40}), 256, 7, defaults)
    assert not longer.sampling.HasField("max_tokens")
    assert defaults.temperature == pytest.approx(0.6)


def test_speculation_that_is_off_takes_no_draft_tokens(kind: type[Request]) -> None:
    request = kind(speculation={"mode": inference_pb2.Speculation.MODE_OFF, "max_draft_tokens": 3})
    assert check_request(request, 256, 7).max_draft_tokens == 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sampling": {"temperature": -1.0, "top_p": 2.0}}, ["sampling.temperature", "sampling.top_p"]),
        ({"sampling": {"stop": ["x" * 257]}}, ["sampling.stop[0]"]),
        ({"sampling": {"logit_bias": {300: 1.0}}}, ["sampling.logit_bias[300]"]),
        ({"n": 0}, ["n"]),
        ({"n": 17, "priority": 101}, ["n", "priority"]),
        ({"speculation": {"max_draft_tokens": 0}}, ["speculation.max_draft_tokens"]),
        ({"speculation": {"mode": 9}}, ["speculation.mode"]),
    ],
)
def test_every_wrong_field_is_named(kind: type[Request], fields: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_request(kind(**fields), 256, 7)
    assert [violation.field for violation in caught.value.violations] == named


@pytest.mark.parametrize(
    ("token_ids", "says"),
    [
        ([], "empty"),
        ([1, 256, 2], "out of range"),
        ([1] * 100, "100 tokens.*context of 100"),
        ([1] * 101, "no room"),
        ([256] * 101, "no room"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(token_ids: list[int], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        check_prompt_tokens(token_ids, 256, 100, "prompt")
    check_prompt_tokens([255] * 99, 256, 100, "prompt")


def test_texts_that_are_too_long_are_refused_before_they_are_read() -> None:
    check_prompt_bytes(10, 10, "prompt")
    with pytest.raises(InvalidArgumentError, match=r"11 bytes.*10 bytes"):
        check_prompt_bytes(11, 10, "prompt")
