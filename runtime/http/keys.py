"""The keys that clients send, each with the name by which logs call its owner.

A file of keys has one a line: `name: key`, or a key alone, whose owner is called by the number of its line; empty lines and lines
that begin with `#` do not count.
"""

from __future__ import annotations

import hmac
import stat
from collections.abc import Mapping
from pathlib import Path

from maskpro_deploy.errors import ConfigError, InputError

_LEAST_LENGTH = 8


class ApiKeys:
    """Who may use the model; nobody is asked where there is no key."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._owners = [(key.encode(), name) for name, key in keys.items()]

    def __bool__(self) -> bool:
        return bool(self._owners)

    def __repr__(self) -> str:
        return f"<{len(self._owners)} keys>"

    def find_owner(self, sent: str) -> str | None:
        """The name of a key's owner; None for a key that is none. It takes the same time whatever was sent."""
        given, owner = sent.strip().encode(), None
        for key, name in self._owners:
            if hmac.compare_digest(given, key):
                owner = name
        return owner


def read_keys(path: Path) -> dict[str, str]:
    """The keys of a file, by their owners' names.

    Raises:
        InputError: it cannot be read, others may read it, or it holds no key.
        ConfigError: a key is too short, or a name or a key comes twice.
    """
    try:
        others = stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not text"
        raise InputError(f"--api-key-file {path} cannot be read: {reason}.") from e
    if others:
        raise InputError(f"--api-key-file {path} can be read by others.\nRun: chmod 600 {path}")
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        name, colon, key = (part.strip() for part in entry.partition(":"))
        if not colon:
            name, key = f"line {number}", entry
        if len(key) < _LEAST_LENGTH:
            raise ConfigError(f"{path}, line {number}: a key has {_LEAST_LENGTH} characters at least.")
        if not name or name in keys or key in keys.values():
            raise ConfigError(f"{path}, line {number}: the name is empty, or name or key came before.")
        keys[name] = key
    if not keys:
        raise InputError(f"--api-key-file {path} holds no key.")
    return keys
