"""Which tokens end a text: from `generation_config.json`, `config.json` and the names in `tokenizer_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from maskpro_deploy.errors import FormatError
from maskpro_deploy.system.files import read_json

_END_NAMES = ("eos_token", "eot_token", "end_of_turn_token")


def read_optional(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing if there is no such file."""
    return read_json(path) if path.is_file() else {}


def find_end_tokens(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of all tokens at which generation stops, sorted; the end-of-turn token of chat models among them.

    Raises:
        FormatError: an id is not a whole number, or none is named at all.
    """
    ids: set[int] = set()
    for fields in (config, read_optional(folder / "generation_config.json")):
        value = fields.get("eos_token_id")
        ids |= {_check_id(v) for v in (value if isinstance(value, list) else [value]) if v is not None}
    names = read_optional(folder / "tokenizer_config.json")
    for field in _END_NAMES:
        name = names.get(field)
        text = name.get("content") if isinstance(name, dict) else name
        if isinstance(text, str) and (token := tokenizer.token_to_id(text)) is not None:
            ids.add(int(token))
    if not ids:
        raise FormatError(f"{folder} names no end-of-text token.\nPut eos_token_id into its config.json.")
    return tuple(sorted(ids))


def read_token_id(config: Mapping[str, Any], field: str) -> int | None:
    """One optional token id of `config.json`; of several, the first."""
    value = config.get(field)
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else _check_id(value)


def _check_id(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FormatError(f"a token id must be a whole number, found {value!r}.")
    return value
