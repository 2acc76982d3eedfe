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


def first_line(error: BaseException, most: int = 300) -> str:
    """What an error of another library says, in one line: the first line of its message, or its type where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()[:most]


def in_one_line(error: BaseException, most: int = 1000) -> str:
    """The whole message of an error with its lines joined, for those that do not say what happened in the first one."""
    return " ".join(str(error).split())[:most] or type(error).__name__
