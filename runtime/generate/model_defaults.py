"""What a model's authors recommend for requests that do not say: the bundle's `generation_config.json`, as vLLM reads it.

Only what `MODEL_DEFAULTS` names counts. `do_sample` does not: whoever wants greedy answers says `temperature: 0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import FormatError
from maskpro_deploy.runtime.generate.sampling_params import SamplingError, SamplingParams
from maskpro_deploy.system.files import read_json

GENERATION_FILE = "generation_config.json"
SOURCES = {"auto": True, "none": False}  # names of --generation-config -> whether the file is read
# sampling parameters that the file may set -> whether they are whole numbers
MODEL_DEFAULTS = {"temperature": False, "top_k": True, "top_p": False, "min_p": False, "repetition_penalty": False}
_LENGTH = "max_new_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """Defaults of requests; without a file those of `SamplingParams`."""

    sampling: Mapping[str, float] = field(default_factory=dict)  # by the names of `SamplingParams`
    max_tokens: int | None = None  # length of answers, as far as there is room; None leaves it to each API

    @classmethod
    def read(cls, bundle: Path) -> ModelDefaults:
        """Those of a bundle; a FormatError if its file is damaged or holds a value that no request could have."""
        path = bundle / GENERATION_FILE
        if not path.is_file():
            return cls()
        values = read_json(path)
        sampling = {name: _read(path, values, name, whole=whole) for name, whole in MODEL_DEFAULTS.items()}
        if sampling["top_k"] == -1:  # another sign for all
            sampling["top_k"] = 0
        given = {name: value for name, value in sampling.items() if value is not None}
        try:
            SamplingParams(**given)
        except SamplingError as e:
            raise _wrong(path, str(e)) from e
        length: Any = _read(path, values, _LENGTH, whole=True)
        if length is not None and length < 1:
            raise _wrong(path, f"{_LENGTH} is {length}; it is 1 at least.")
        return cls(sampling=given, max_tokens=length)


def _read(path: Path, values: Mapping[str, Any], name: str, *, whole: bool) -> Any:
    value = values.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int if whole else (int, float))):
        raise _wrong(path, f"{name} is {str(value)[:40]!r}, not a {'whole ' if whole else ''}number.")
    return value


def _wrong(path: Path, what: str) -> FormatError:
    return FormatError(f"{path}: {what}\nExport the bundle again from a correct file, or serve it with --generation-config none.")
