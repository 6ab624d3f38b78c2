"""The token ids of what a request asks to be continued or answered."""

from collections.abc import Sequence

from gateway.generation.validation import Request, check_prompt_bytes, check_prompt_tokens
from gateway.model.tokenizer import ModelTokenizer
from paceline.errors import InvalidArgumentError
from paceline.v1 import inference_pb2, model_pb2


async def read_prompt(
    request: Request, tokenizer: ModelTokenizer, info: model_pb2.ModelInfo, max_bytes: int
) -> Sequence[int]:
    """The prompt of a request, checked. Raises InvalidArgumentError, FailedPreconditionError without a template."""
    token_ids: Sequence[int]
    if isinstance(request, inference_pb2.ChatRequest):
        field = "messages"
        if not request.messages:
            raise InvalidArgumentError(field, "must not be empty")
        check_prompt_bytes(sum(len(message.content.encode()) for message in request.messages), max_bytes, field)
        token_ids = await tokenizer.encode_chat(
            [{"role": message.role, "content": message.content} for message in request.messages]
        )
    elif request.WhichOneof("input") == "prompt":
        field = "prompt"
        check_prompt_bytes(len(request.prompt.encode()), max_bytes, field)
        token_ids = await tokenizer.encode(request.prompt) if request.prompt else []
    elif request.WhichOneof("input") == "token_ids":
        field, token_ids = "token_ids.ids", request.token_ids.ids
    else:
        raise InvalidArgumentError("prompt", "a prompt or token_ids must be given")
    most = max(token_ids, default=0)
    check_prompt_tokens(len(token_ids), most, info.vocab_size, info.max_context_tokens, field)
    return token_ids
