"""Addresses that may carry a user, a password or a signature, none of which is ever shown."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Secret

_MASK = "***"


class _SecretUrl(Secret[str]):
    def _display(self) -> str:
        """The address, with a mask for what stands before its host and behind its path."""
        parts = urlsplit(self.get_secret_value())
        user, _, host = parts.netloc.rpartition("@")
        shown = parts._replace(netloc=f"{_MASK}@{host}" if user else host, query=parts.query and _MASK, fragment="")
        return shown.geturl()


def _well_formed(url: _SecretUrl) -> _SecretUrl:
    """Raises ValueError for what others would refuse with an error that shows a part of it: "redis://:a/b@host"."""
    try:
        parts = urlsplit(url.get_secret_value())
        is_url = parts.port != 0 and "@" not in parts.path + parts.query + parts.fragment
    except ValueError:
        is_url = False
    if not is_url:
        raise ValueError("is no URL; in passwords '/', '?', '#', '@' and '%' are written as %2F, %3F, %23, %40 and %25")
    return url


SecretUrl = Annotated[_SecretUrl, AfterValidator(_well_formed)]
"""A setting's type: its whole is there for those who ask with `get_secret_value`."""
