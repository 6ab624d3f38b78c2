"""What the core produced, as OpenAI's bodies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.openai.bodies import CHAT_COMPLETIONS
from paceline.v1 import inference_pb2, sampling_pb2

_REASONS = {
    sampling_pb2.FINISH_REASON_EOS: "stop",
    sampling_pb2.FINISH_REASON_STOP: "stop",
    sampling_pb2.FINISH_REASON_LENGTH: "length",
}


@dataclass
class _Text:
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[sampling_pb2.TokenLogprobs] = field(default_factory=list)
    reason: str | None = None


class Reply:
    """Takes the events of one request in, and says at any moment what there is."""

    def __init__(self, url: str) -> None:
        self._is_chat = url == CHAT_COMPLETIONS
        self._texts: dict[int, _Text] = {}
        self._started = inference_pb2.Started()

    def add(self, event: Any) -> None:
        """Takes the next event."""
        if isinstance(event, inference_pb2.Started):
            self._started = event
        elif isinstance(event, inference_pb2.Delta):
            text = self._texts.setdefault(event.choice, _Text())
            text.pieces.append(event.text)
            text.token_ids.extend(event.token_ids)
            text.logprobs.extend(event.logprobs)
        elif isinstance(event, inference_pb2.Finished):
            self._texts.setdefault(event.choice, _Text()).reason = _REASONS.get(event.finish_reason)

    def body(self, request_id: str, model: str, created: float, usage: inference_pb2.Usage) -> dict[str, Any]:
        """All that there is, with `finish_reason` null where a text did not end by itself."""
        return {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{request_id}",
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": int(created),
            "model": model,
            "choices": [self._choice(index, text) for index, text in sorted(self._texts.items())],
            "usage": {
                "prompt_tokens": usage.num_prompt_tokens,
                "completion_tokens": usage.num_completion_tokens,
                "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
            },
            "seed": self._started.seed,
        }

    def _choice(self, index: int, text: _Text) -> dict[str, Any]:
        content = "".join(text.pieces)
        told: dict[str, Any] = (
            {"message": {"role": "assistant", "content": content}} if self._is_chat else {"text": content}
        )
        logprobs = _logprobs(text.token_ids, text.logprobs) if text.logprobs else None
        return {"index": index, **told, "logprobs": logprobs, "finish_reason": text.reason}


def _logprobs(token_ids: Sequence[int], logprobs: Sequence[sampling_pb2.TokenLogprobs]) -> dict[str, Any]:
    """By token ids: one token's text may be no text of its own."""
    return {
        "content": [
            {
                "token_id": token_id,
                "logprob": said.logprob,
                "top_logprobs": [{"token_id": top.token_id, "logprob": top.logprob} for top in said.top],
            }
            for token_id, said in zip(token_ids, logprobs, strict=False)
        ]
    }
