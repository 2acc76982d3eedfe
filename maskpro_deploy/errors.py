"""The errors a user can meet, each with the exit code it ends a command with.

The command line catches `MaskProError` and prints its message: one to three plain lines that say what happened, where, and
what to do. Anything else is a bug and shows its traceback.

    MaskProError                1
    ├── CheckFailed             1   a check was made, and the answer is no
    ├── InputError              2   what was given cannot be used
    │   ├── ConfigError         2   a setting is out of its range (the message names the flag)
    │   ├── PatternError        2   an N:M pattern is malformed or does not divide a dimension
    │   └── FormatError         2   a file is not what it has to be: truncated, corrupt, another version
    ├── MachineError            3   this machine lacks something
    │   ├── MissingExtraError   3   an optional dependency is not installed
    │   ├── DownloadError       3   a fetch failed, or what came has the wrong checksum
    │   └── DiskFullError       3   no space left
    └── Interrupted             130 the user stopped it; the message says how to go on
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence


class MaskProError(Exception):
    """Base of all errors that a user can cause or fix."""

    exit_code = 1


class CheckFailed(MaskProError):
    """A check was made, and the answer is no."""


class InputError(MaskProError):
    """What was given cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A setting is out of its range."""


class PatternError(InputError):
    """An N:M pattern is malformed, or does not divide the dimension it is meant for."""


class FormatError(InputError):
    """A file is not what it has to be."""


class MachineError(MaskProError):
    """This machine lacks something that the command needs."""

    exit_code = 3


class MissingExtraError(MachineError):
    """An optional dependency is not installed."""


class DownloadError(MachineError):
    """Something could not be fetched, or came damaged."""


class DiskFullError(MachineError):
    """No space left where the result has to go."""


class Interrupted(MaskProError):
    """The user stopped the work; what was done so far is saved."""

    exit_code = 130


def check_known(flag: str, value: str | None, known: Iterable[str]) -> None:
    """Refuse a name that is not one of those known; None is an option that was not given.

    Raises:
        ConfigError: with the flag, the name and the known ones.
    """
    if value is not None and value not in (names := tuple(known)):
        raise ConfigError(f"{flag} {value} is not known. Known: {', '.join(names)}.")


def check_names(flag: str, values: Sequence[str], known: Iterable[str]) -> None:
    """Refuse a list of names that is empty, or where one is not known or given twice.

    Raises:
        ConfigError: with the flag and what is wrong.
    """
    names = tuple(known)
    for value in values:
        check_known(flag, value, names)
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"{flag} {','.join(values) or 'is empty'}: name each one once, such as {','.join(names[:2])}.")


def check_range(
    flag: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    note: str = "",
) -> None:
    """Refuse a number outside its bounds, and NaN; None is an option that was not given.

    Args:
        flag: by which the user knows the setting.
        value: the setting.
        least: the lowest number allowed.
        above: a bound that is itself too low.
        most: the highest number allowed.
        below: a bound that is itself too high.
        note: what else to say of the bounds.

    Raises:
        ConfigError: with the flag, the number and the bounds.
    """
    kinds = ((least, operator.ge, "at least"), (above, operator.gt, "above"), (most, operator.le, "at most"))
    bounds = [(bound, holds, words) for bound, holds, words in (*kinds, (below, operator.lt, "below")) if bound is not None]
    if value is None or all(holds(value, bound) for bound, holds, _ in bounds):
        return
    allowed = " and ".join(f"{words} {bound:g}" for bound, _, words in bounds)
    shown = f"{value:g}" if isinstance(value, float) else value
    raise ConfigError(f"{flag} {shown} is out of range: {allowed}{note and f' ({note})'}.")


def first_line(error: BaseException, most: int = 300) -> str:
    """What an error of another library says, in one line: the first line of its message, or its type where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()[:most]


def in_one_line(error: BaseException, most: int = 1000) -> str:
    """The whole message of an error with its lines joined, for those that do not say what happened in the first one."""
    return " ".join(str(error).split())[:most] or type(error).__name__
