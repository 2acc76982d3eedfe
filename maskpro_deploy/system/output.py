"""How results are printed: to stdout, as text or, with `--json`, as exactly one object. Everything else goes to stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def ignore_closed_stdout() -> Iterator[None]:
    """Drop what is left to print once the reader of stdout is gone, as `head` goes: it changes neither work nor exit code."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def emit(as_json: bool, value: dict[str, Any], text: str) -> None:
    """Print a result: `value` as one JSON object, or `text`."""
    with ignore_closed_stdout():
        click.echo(json.dumps(value, allow_nan=False) if as_json else text)


def table(rows: Sequence[Sequence[object]], header: Sequence[str] | None = None) -> str:
    """Rows as aligned columns; numbers to the right."""
    cells = [[str(c) for c in row] for row in rows]
    lines = [list(header), *cells] if header else cells
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = [all(_is_number(row[i]) for row in cells) for i in range(len(widths))]

    def render(line: list[str]) -> str:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    rendered = [render(line) for line in lines]
    if header:
        rendered.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(rendered)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?( ?[%x])?|-|", cell) is not None
