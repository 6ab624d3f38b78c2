"""Who attackers say to be: in the metadata of their calls, to the gateway and to the services behind it."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from attacks.ordinary import NAMESPACE, TENANT
from services.common.access import credentials
from services.common.tokens import TokenMint, new_signing_key

TENANT_HEADER = "x-tenant"
Metadata = tuple[tuple[str, str | bytes], ...]
_NAMED: Metadata = ((TENANT_HEADER, TENANT),)
PROPER = "proper"


def _jwt(header: bytes, claims: bytes = b"{}") -> str:
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, claims, b"x" * 64))


def _tokens(mint: TokenMint, signing_key: str) -> Mapping[str, Callable[[], Metadata]]:
    """Metadata by name, for services that check tokens. A proper caller has one of a sequence."""
    late = TokenMint(signing_key, 1.0, lambda: time.time() - 3_600)
    forged = TokenMint(new_signing_key(), 60.0)
    sequence = credentials(mint.sequence_token(NAMESPACE))
    texts = {
        "garbage": "garbage",
        "an empty token": "",
        "a token of dots": "." * 4_000,
        "a token nested deep": _jwt(b'{"kid": ' + b"[" * 3_000 + b"]" * 3_000 + b"}"),
        "a token whose key is a list": _jwt(b'{"alg": "EdDSA", "typ": "JWT", "kid": ["a"]}'),
        "a token whose key is null": _jwt(b'{"alg": "EdDSA", "typ": "JWT", "kid": null}'),
        "a token of a list": _jwt(b"[1, 2]"),
        "a token of a number": _jwt(b"1" * 5_000),
        "a token that is no UTF-8": _jwt(b"\xff\xfe"),
        "a token without algorithm": _jwt(b'{"alg": "none", "kid": "x"}', json.dumps({"namespaces": ["*"]}).encode()),
    }
    return {
        PROPER: lambda: sequence,
        "an owner": lambda: credentials(mint.owner_token(NAMESPACE)),
        "an owner of another": lambda: credentials(mint.owner_token("tenant/other")),
        "another": lambda: credentials(mint.sequence_token("tenant/other")),
        "nobody": tuple,
        "late": lambda: credentials(late.sequence_token(NAMESPACE)),
        "forged": lambda: credentials(forged.sequence_token(NAMESPACE)),
        "two": lambda: sequence * 2,
        "another scheme": lambda: (("authorization", f"Basic {TENANT}"),),
        **{
            name: lambda text=text: credentials(text) or (("authorization", "Bearer "),) for name, text in texts.items()
        },
    }


_GATEWAY: Mapping[str, Callable[[], Metadata]] = MappingProxyType(
    {
        PROPER: lambda: _NAMED,
        "nobody": tuple,
        "two": lambda: (*_NAMED, (TENANT_HEADER, "victim")),
        "an empty name": lambda: ((TENANT_HEADER, ""),),
        "a long name": lambda: ((TENANT_HEADER, "m" * 129),),
        "a name of many kilobytes": lambda: ((TENANT_HEADER, "m" * 7_000),),
        "too much metadata": lambda: (*_NAMED, ("x-more", "m" * 40_000)),
        "a path": lambda: ((TENANT_HEADER, "../victim"),),
        "a name with spaces": lambda: ((TENANT_HEADER, " mallory / %00 "),),
        "many entries": lambda: (*_NAMED, *((f"x-{number}", "m") for number in range(100))),
        "bytes": lambda: (*_NAMED, ("x-more-bin", bytes(range(256)))),
        "a broken trace": lambda: (*_NAMED, ("traceparent", "00-" + "f" * 32 + "-zz-01"), ("baggage", "=;=,," * 50)),
        "a token": lambda: (*_NAMED, *[("authorization", "Bearer x")] * 2),
    }
)


class Identities:
    """Metadata by process and name."""

    def __init__(self, signing_key: str) -> None:
        self._tokens = _tokens(TokenMint(signing_key, 600.0), signing_key)

    def names(self, process: str) -> tuple[str, ...]:
        """All that a caller of a process may say to be."""
        return tuple(self._of(process))

    def metadata(self, process: str, name: str) -> Metadata:
        """What a call carries."""
        return self._of(process)[name]()

    def _of(self, process: str) -> Mapping[str, Callable[[], Metadata]]:
        return _GATEWAY if process == "gateway" else self._tokens
