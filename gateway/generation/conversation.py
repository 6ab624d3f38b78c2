"""What a chat template is given for a request."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.generation.validation import check_prompt_bytes
from gateway.model.chat_template import Conversation, Message
from paceline.errors import InvalidArgumentError
from paceline.v1 import inference_pb2

_PIECE_BYTES = 64
"""What a message, a part, a tool or a document counts for beside its text."""


def read_conversation(request: inference_pb2.ChatRequest, max_bytes: int, max_pieces: int) -> Conversation:
    """The conversation of a request. Raises InvalidArgumentError.

    It has at most `max_pieces` messages, parts, tools and documents, whatever is in them.
    """
    num_pieces = len(request.messages) + len(request.tools) + len(request.documents)
    if num_pieces <= max_pieces:
        num_pieces += sum(len(message.parts) for message in request.messages)
    if num_pieces > max_pieces:
        problem = f"{num_pieces} messages, parts, tools and documents are more than a context of {max_pieces} tokens"
        raise InvalidArgumentError("messages", problem)
    num_bytes = sum(len(text.encode()) for text in _texts(request))
    check_prompt_bytes(num_bytes, max_bytes, "messages")
    return Conversation(
        messages=[_message(message, f"messages[{at}]") for at, message in enumerate(request.messages)],
        tools=_objects(request.tools, "tools"),
        documents=_objects(request.documents, "documents"),
        arguments=_object(request.template_arguments, "template_arguments"),
        continue_final_message=request.continue_final_message,
        template=request.chat_template,
        num_characters=num_bytes + _PIECE_BYTES * num_pieces,
    )


def _message(message: inference_pb2.ChatMessage, place: str) -> Message:
    if message.content and message.parts:
        raise InvalidArgumentError(f"{place}.parts", "stand in the place of content: give one of them")
    more = _object(message.fields, f"{place}.fields")
    if "role" in more:
        raise InvalidArgumentError(f"{place}.fields", "hold no role: it has a field of its own")
    said: Message = {"role": message.role}
    if message.parts:
        said["content"] = [_part(part, f"{place}.parts[{at}]") for at, part in enumerate(message.parts)]
    elif message.content or not more:
        said["content"] = message.content
    if "content" in more and "content" in said:
        raise InvalidArgumentError(f"{place}.fields", "hold a content, and the message has one already")
    return {**said, **more}


def _part(part: inference_pb2.ContentPart, place: str) -> dict[str, Any]:
    if not part.HasField("text"):
        raise InvalidArgumentError(place, "must be text: models are served for text alone")
    return {"type": "text", "text": part.text}


def _objects(texts: Sequence[str], name: str) -> list[dict[str, Any]]:
    return [_object(text, f"{name}[{at}]") for at, text in enumerate(texts)]


def _object(text: str, field: str) -> dict[str, Any]:
    """What a field holds that is a JSON object, or nothing."""
    try:
        read = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(field, f"must be JSON: {error}") from error
    if not isinstance(read, dict):
        raise InvalidArgumentError(field, f"must be a JSON object, got {type(read).__name__}")
    return read


def _texts(request: inference_pb2.ChatRequest) -> Iterable[str]:
    """All of a conversation that a template may show."""
    for message in request.messages:
        yield from (message.role, message.content, message.fields, *(part.text for part in message.parts))
    yield from (*request.tools, *request.documents, request.template_arguments)
