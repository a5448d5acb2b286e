"""Local paths: what is written is on this machine, and an address (s3://bucket/x) must not become a folder "s3:"."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["is_text", "local_path"]

# `Path("s3://bucket")` is "s3:/bucket", and nothing else is left of the address by then.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):(//?|$)", re.IGNORECASE)


def local_path(path: str | Path, name: str = "out") -> Path:
    """The path, where it is one on this machine.

    name  of the argument, for the error

    Raises `ValueError` for an address (`scheme://...`, also after `Path` took one of its slashes), with the remedy.
    """
    address = _ADDRESS.match(str(path))
    if address is None:
        return Path(path)
    scheme, rest = address[1].lower(), str(path)[address.end() :]
    if scheme == "file":
        plain = "/" + rest.removeprefix("localhost/").lstrip("/")
        raise ValueError(f"{name}={path}: expected a plain path; write {plain}")
    raise ValueError(
        f"{name}={path}: {scheme}:// is an address, and only folders of this machine are written; write to a local "
        "folder and copy it there, or give the path at which the storage is mounted"
    )


def is_text(key: str) -> bool:
    """False for names of files that are no UTF-8: they reach Python with lone surrogates, which Parquet refuses."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True
