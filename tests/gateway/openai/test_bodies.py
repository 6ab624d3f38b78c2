"""OpenAI's bodies: what changes an answer is taken or refused by name, what does not is ignored."""

from typing import Any

import pytest

from gateway.openai.bodies import CHAT_COMPLETIONS, COMPLETIONS, read_body
from gateway.openai.replies import Reply
from paceline.errors import InvalidArgumentError
from paceline.v1 import inference_pb2, sampling_pb2


def test_a_completion_is_taken_with_all_its_fields() -> None:
    body = {
        "model": "m", "prompt": "say", "max_tokens": 5, "temperature": 1, "top_p": 0.5, "n": 2, "stop": "end",
        "seed": 7, "logprobs": 3, "presence_penalty": -1, "frequency_penalty": 0.5, "logit_bias": {"17": -2},
        "user": "somebody", "stream": False, "top_k": 4, "adapter": "mine", "echo": None,
    }  # fmt: skip
    expected = inference_pb2.GenerateRequest(model="m", prompt="say", n=2, adapter="mine")
    expected.sampling.MergeFrom(
        sampling_pb2.SamplingParams(
            max_tokens=5, temperature=1, top_p=0.5, stop=["end"], seed=7, logprobs=3, presence_penalty=-1,
            frequency_penalty=0.5, logit_bias={17: -2}, top_k=4,
        )
    )  # fmt: skip
    assert read_body(COMPLETIONS, body) == expected
    ids = read_body(COMPLETIONS, {"prompt": [1, 2]})
    assert isinstance(ids, inference_pb2.GenerateRequest)
    assert list(ids.token_ids.ids) == [1, 2]


def test_a_conversation_is_taken_with_all_its_fields() -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    body = {
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": parts}],
        "max_completion_tokens": 9, "logprobs": True, "top_logprobs": 2, "stop": ["a", "b"],
    }  # fmt: skip
    request = read_body(CHAT_COMPLETIONS, body)
    assert isinstance(request, inference_pb2.ChatRequest)
    assert [(message.role, message.content) for message in request.messages] == [("system", "be kind"), ("user", "hi")]
    assert (request.sampling.max_tokens, request.sampling.logprobs, list(request.sampling.stop)) == (9, 2, ["a", "b"])
    assert read_body(CHAT_COMPLETIONS, {**body, "top_logprobs": None}).sampling.logprobs == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None), ("prompt", ["a", "b"]), ("prompt", [-1]), ("prompt", [True]), ("prompt", "\ud800"),
        ("temperature", "hot"), ("temperature", True), ("max_tokens", 1.5), ("max_tokens", -1), ("seed", 1 << 64),
        ("stop", 5), ("stop", [1]), ("logit_bias", {"x": 1}), ("logit_bias", {"1": "y"}), ("logit_bias", [1]),
        ("stream", True), ("echo", True), ("best_of", 3), ("n", "2"), ("unheard_of", 1), ("model", 7),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_body(COMPLETIONS, {"prompt": "say", field: value})
    assert [violation.field.partition(".")[0] for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    "messages",
    [
        [], "hi", [1], [{"role": "user"}], [{"content": "hi"}], [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        [{"role": "assistant", "content": "", "tool_calls": [{}]}],
    ],
)  # fmt: skip
def test_messages_that_cannot_be_taken_are_refused(messages: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_body(CHAT_COMPLETIONS, {"messages": messages})
    assert caught.value.violations[0].field.startswith("messages")


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_body(COMPLETIONS, {"temperature": "hot", "tools": [{}], "top_logprobs": 1})
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["prompt", "temperature", "tools", "top_logprobs"]


def test_a_reply_has_a_choice_a_text() -> None:
    reply = Reply(COMPLETIONS)
    for event in (
        inference_pb2.Started(seed=5),
        inference_pb2.Delta(choice=1, text="b", token_ids=[2], logprobs=[sampling_pb2.TokenLogprobs(logprob=-0.5)]),
        inference_pb2.Delta(choice=0, text="a", token_ids=[1]),
        inference_pb2.Finished(choice=1, finish_reason=sampling_pb2.FINISH_REASON_LENGTH),
    ):
        reply.add(event)
    body = reply.body("id", "m", 3.5, inference_pb2.Usage(num_prompt_tokens=2, num_completion_tokens=2))
    assert [(choice["text"], choice["finish_reason"]) for choice in body["choices"]] == [("a", None), ("b", "length")]
    assert body["choices"][1]["logprobs"]["content"][0] == {"token_id": 2, "logprob": -0.5, "top_logprobs": []}
    assert (body["usage"]["total_tokens"], body["seed"], body["created"]) == (4, 5, 3)
