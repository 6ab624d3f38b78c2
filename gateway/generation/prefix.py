"""What the beginning of a prompt is known by: requests that begin alike find what was computed of it."""

from collections.abc import Sequence

from gateway.generation.validation import Request
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import inference_pb2
from services.common.digest import identity_digest

_NUM_TOKENS = 256
"""So many tokens are a beginning. A shorter prompt is one of its own, and costs little to compute anew."""
_DIGITS = 16


def prefix_key(
    request: Request, prompt_ids: Sequence[int], tenant: speculation_pb2.TenantAccess, adapter_digest: str
) -> str:
    """16 hexadecimal digits that are the same for all turns of a conversation, and hardly ever for anything else.

    A chat begins with its first message of a user, and with what stands before that: later turns repeat it. Any other
    prompt begins with its first tokens behind those that all callers share. Nothing computed is shared by two tenants,
    or with two adapters: so these are part of it.
    """
    if isinstance(request, inference_pb2.ChatRequest):
        roles = [message.role for message in request.messages]
        end = roles.index("user") + 1 if "user" in roles else len(roles)
        beginning = inference_pb2.ChatRequest(messages=request.messages[:end]).SerializeToString(deterministic=True)
    else:
        start = tenant.num_public_tokens if tenant.num_public_tokens < len(prompt_ids) else 0
        beginning = ",".join(map(str, prompt_ids[start : start + _NUM_TOKENS])).encode()
    digest = identity_digest(namespace=tenant.namespace, adapter=adapter_digest, beginning=beginning)
    return digest.hex()[:_DIGITS]
