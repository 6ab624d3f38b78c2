"""What objects are called.

    adapters/DIGEST/adapter_model.safetensors   weights
    adapters/DIGEST/adapter_config.json         configuration; written last: with it the adapter is whole
    owners/DIGEST/NAMESPACE                     a namespace may fetch the adapter; written before the adapter
    labels/NAMESPACE/LABEL.json                 the Adapter that a label is on, as JSON

NAMESPACE stands for a namespace's UTF-8 bytes as hexadecimal digits, or, where those would be too many for a file's
name, for "h" and their SHA-256.
"""

import hashlib
import re

from paceline.errors import InvalidArgumentError

ADAPTERS, OWNERS, LABELS = "adapters/", "owners/", "labels/"
_LABEL = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_NAMESPACE_BYTES = 100


def check_label(field: str, name: str) -> None:
    """Raises InvalidArgumentError for what can be no label."""
    if not _LABEL.fullmatch(name):
        raise InvalidArgumentError(
            field, "must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', the first one a letter or a digit"
        )


def content_object(digest: str, file: str) -> str:
    """A file of an adapter."""
    return f"{ADAPTERS}{digest}/{file}"


def owners_prefix(digest: str) -> str:
    """Of all who may fetch an adapter."""
    return f"{OWNERS}{digest}/"


def owner_object(digest: str, namespace: str) -> str:
    """That a namespace may fetch an adapter."""
    return owners_prefix(digest) + _key(namespace)


def labels_prefix(namespace: str) -> str:
    """Of all labels of a namespace."""
    return f"{LABELS}{_key(namespace)}/"


def label_object(namespace: str, name: str) -> str:
    """A label."""
    return f"{labels_prefix(namespace)}{name}.json"


def _key(namespace: str) -> str:
    data = namespace.encode()
    return data.hex() if len(data) <= _MAX_NAMESPACE_BYTES else "h" + hashlib.sha256(data).hexdigest()
