"""The token ids of what a request asks to be continued or answered."""

import asyncio
from collections.abc import Sequence

from gateway.generation.conversation import read_conversation
from gateway.generation.validation import Request, check_prompt_bytes, check_prompt_tokens
from gateway.model.chat_template import Conversation
from gateway.model.tokenizer import ModelTokenizer, TooManyTokensError
from paceline.errors import InvalidArgumentError
from paceline.v1 import inference_pb2, model_pb2

_INLINE_MESSAGES = 64
_INLINE_BYTES = 1 << 14
"""What has more messages or bytes is read in a thread, so that nobody waits for it."""


async def read_prompt(
    request: Request, tokenizer: ModelTokenizer, info: model_pb2.ModelInfo, max_bytes: int
) -> Sequence[int]:
    """The prompt of a request, checked. Raises InvalidArgumentError, FailedPreconditionError without a template."""
    context = info.max_context_tokens
    field = "messages" if isinstance(request, inference_pb2.ChatRequest) else "prompt"
    token_ids: Sequence[int]
    try:
        if isinstance(request, inference_pb2.ChatRequest):
            conversation = await _conversation(request, context, max_bytes)
            token_ids = await tokenizer.encode_chat(conversation, most=context)
        elif request.WhichOneof("input") == "prompt":
            text = request.prompt  # A message makes its text anew each time that it is asked for it.
            check_prompt_bytes(len(text.encode()), max_bytes, field)
            token_ids = await tokenizer.encode(text, most=context) if text else []
        elif request.WhichOneof("input") == "token_ids":
            field, token_ids = "token_ids.ids", request.token_ids.ids
        else:
            raise InvalidArgumentError("prompt", "a prompt or token_ids must be given")
    except TooManyTokensError as error:
        problem = f"the prompt has {error}, which leaves no room in the model's context of {context} tokens"
        raise InvalidArgumentError(field, problem) from error
    check_prompt_tokens(token_ids, info.vocab_size, context, field)
    return token_ids


async def _conversation(request: inference_pb2.ChatRequest, context: int, max_bytes: int) -> Conversation:
    """The conversation of a request. Each piece of it takes a token at least, so that their number is bounded before
    they are read.
    """
    if not request.messages:
        raise InvalidArgumentError("messages", "must not be empty")
    is_small = len(request.messages) <= _INLINE_MESSAGES and request.ByteSize() <= _INLINE_BYTES
    if is_small:
        return read_conversation(request, max_bytes, context)
    return await asyncio.to_thread(read_conversation, request, max_bytes, context)
