"""Whose a stream is, as far as an engine's neighbours ask."""

from typing import NamedTuple


class Tenant(NamedTuple):
    """A caller's namespace and the bearer token that stands for it; both empty where nobody says whose a stream is."""

    namespace: str
    token: str
