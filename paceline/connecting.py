"""Why no connection came about, in words: gRPC tells it in those of its parts."""

import re
from typing import NamedTuple
from urllib.parse import unquote

EXPIRED = "CERTIFICATE_EXPIRED"
NOT_YET_VALID = "CERTIFICATE_NOT_YET_VALID"
UNKNOWN_AUTHORITY = "UNKNOWN_AUTHORITY"
OTHER_NAME = "OTHER_NAME"
PLAINTEXT = "PLAINTEXT"
REFUSED_AT_ONCE = "REFUSED_AT_ONCE"
NO_TLS = "NO_TLS"

NOT_CONNECTED = "failed to connect to all addresses"
"""What details begin with of a call that was not sent."""
_WHERE = re.compile(r"\bipv[46]:([^\s;]+:\d+)|\bunix:([^\s;:]+)")
_KNOWN = (
    ("certificate has expired", EXPIRED, "the certificate of {where} has expired"),
    ("certificate is not yet valid", NOT_YET_VALID, "the certificate of {where} is not valid yet, by the clock here"),
    ("CERTIFICATE_VERIFY_FAILED", UNKNOWN_AUTHORITY, "no authority that is known here vouches for {where}"),
    ("Hostname Verification Check failed", OTHER_NAME, "the certificate of {where} does not have the name it needs"),
    ("WRONG_VERSION_NUMBER", PLAINTEXT, "{where} speaks in plaintext, and TLS was asked for"),
    ("handshake failed", NO_TLS, "no TLS connection with {where} came about"),
)
"""The first that fits what gRPC says is meant."""
_CLOSED = ("Socket closed", "Connection reset", "End of TCP stream", "Broken pipe")


class Problem(NamedTuple):
    """What kept a connection from coming about."""

    reason: str
    """A word for programs."""
    says: str
    """A sentence for people."""


def problem_of(details: str) -> Problem | None:
    """What a call's details say of connecting, where it is about TLS; else None."""
    if not details.startswith(NOT_CONNECTED):
        return None
    found = _WHERE.search(details)
    where = unquote(found[1] or found[2]) if found else "the server"
    for sign, reason, says in _KNOWN:
        if sign in details:
            return Problem(reason, says.format(where=where))
    if details.rstrip().endswith(_CLOSED):
        says = "closes connections at once: it asks for TLS, or for a certificate that it accepts"
        return Problem(REFUSED_AT_ONCE, f"{where} {says}")
    return None
