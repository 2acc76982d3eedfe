"""Anything that can be measured, under one name: a checkpoint (run in torch), a bundle or its engine (run by the runtime).

`find_target` reads what a model says of itself and loads nothing; `open_target` loads it. Both kinds then read tokens through
the same two calls, `logits` for whole rows and `forward` on top of a cache.

Shapes: `B` rows, `S` new tokens, `P` past tokens, `V` vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from maskpro_deploy.backends.providers import AUTO, CPU, CUDA, GENAI, check_provider_name, check_runs_engines, runs_in_onnxruntime
from maskpro_deploy.data import load_tokenizer, separator_token
from maskpro_deploy.errors import MachineError, check_known
from maskpro_deploy.manifest import MANIFEST_FILE, Manifest, ModelShape
from maskpro_deploy.models import resolve
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.files import read_json, sha256_file

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

TORCH, RUNTIME = "torch", "onnxruntime"
_SIZES = ("vocab_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size", "max_length")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where models run."""

    # one of `backends.providers`, or "auto"; a checkpoint next to a bundle in TensorRT runs in torch, on the GPU if there is one
    provider: str = AUTO
    threads: int | None = None  # CPU threads; None for all cores
    dtype: str = "fp32"  # of a checkpoint in torch, one of DTYPES; a bundle has its own
    form: str | None = None  # of a bundle's key/value cache; None takes the bundle's own graph
    engine: str | None = None  # file of the engine in a bundle; None takes the best that can run here

    def __post_init__(self) -> None:
        check_known("--dtype", self.dtype, DTYPES)
        check_provider_name(self.provider)
        check_runs_engines(self.provider, self.engine)


@dataclass(frozen=True)
class Target:
    """A model to measure, not loaded yet: its name as the user gave it, and the folder of a checkpoint or bundle."""

    name: str
    folder: Path

    @cached_property
    def manifest(self) -> Manifest | None:
        """The bundle's manifest; None for a checkpoint."""
        return Manifest.load(self.folder, engines=False) if (self.folder / MANIFEST_FILE).is_file() else None

    def engine(self, run: RunConfig) -> str:
        """What runs it."""
        if self.manifest is None:
            return TORCH
        return RUNTIME if runs_in_onnxruntime(run.provider) else run.provider

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, without truncation and padding."""
        tokenizer = load_tokenizer(self.folder)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @property
    def max_length(self) -> int | None:
        """The longest sequence it takes, where it says so."""
        if self.manifest is not None:
            return self.manifest.model.max_length
        for key in ("max_position_embeddings", "n_positions"):
            if isinstance(longest := self._text_config.get(key), int):
                return longest
        return None

    @property
    def separator(self) -> int | None:
        """The token that ends a document in packed text."""
        return separator_token(self.folder, self.tokenizer)

    @property
    def bos_token(self) -> int | None:
        """The begin-of-text token."""
        token = self._config.get("bos_token_id", self._text_config.get("bos_token_id"))
        return int(token) if isinstance(token, int) else None

    @property
    def eos_tokens(self) -> tuple[int, ...]:
        """The tokens that end a text, as the model's configuration names them."""
        if self.manifest is not None:
            return self.manifest.model.eos_token_ids
        tokens = self._config.get("eos_token_id", self._text_config.get("eos_token_id"))
        return tuple(t for t in (tokens if isinstance(tokens, list) else [tokens]) if isinstance(t, int))

    def named_token(self, key: str) -> int | None:
        """What tokenizer_config.json calls "bos_token" or "eos_token"; without that file, what the model's configuration does."""
        path = self.folder / "tokenizer_config.json"
        if not path.is_file():
            return self.bos_token if key == "bos_token" else next(iter(self.eos_tokens), None)
        entry = read_json(path).get(key)
        text = entry.get("content") if isinstance(entry, dict) else entry
        return self.tokenizer.token_to_id(text) if isinstance(text, str) else None

    def identity(self, run: RunConfig) -> dict[str, Any]:
        """What its figures belong to: the content of its files, and what runs them."""
        if self.manifest is not None:
            settings = {"provider": run.provider, "form": run.form, "engine_file": run.engine}
            return {"engine": self.engine(run), **settings, "sha256": sha256_file(self.folder / MANIFEST_FILE)}
        digest = hashlib.sha256()
        for file in sorted(p for p in self.folder.iterdir() if p.suffix == ".safetensors" or p.name == "config.json"):
            digest.update(f"{file.name} {sha256_file(file)}\n".encode())
        return {"engine": self.engine(run), "provider": run.provider, "dtype": run.dtype, "sha256": digest.hexdigest()}

    def render_chat(self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = True) -> str:
        """Messages as the model's own prompt.

        Raises:
            InputError: it has no chat template.
            MissingExtraError: rendering one needs the `serve` extra.
        """
        from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

        shape = self.manifest.model if self.manifest is not None else self._special_tokens
        return TextTokenizer.load(self.folder, shape).render(messages, {"add_generation_prompt": add_generation_prompt})

    @property
    def _special_tokens(self) -> ModelShape:
        """A shape of which only the special tokens mean something."""
        sizes = dict.fromkeys(_SIZES, 0)
        tokens = {"eos_token_ids": self.eos_tokens, "bos_token_id": self.bos_token}
        return ModelShape(name=self.name, architecture="", **sizes, **tokens)  # type: ignore[arg-type]

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        return read_json(path) if path.is_file() else {}

    @property
    def _text_config(self) -> dict[str, Any]:
        inner = self._config.get("text_config")
        return inner if isinstance(inner, dict) else self._config


def find_target(name: str) -> Target:
    """The model of that name: a bundle folder, or whatever `resolve` understands, with the same errors."""
    path = Path(name)
    return Target(name, path if (path / MANIFEST_FILE).is_file() else resolve(name))


class OpenTarget:
    """A loaded model: a session of the runtime, or a `TorchLM`.

    Args:
        model: the session or model.
        max_length: the longest sequence it takes as it runs here; None if it does not say.
        max_rows: rows that it reads at once; None for any number.
    """

    def __init__(self, model: Any, max_length: int | None = None, max_rows: int | None = None) -> None:
        self._model = model
        self.max_length, self.max_rows = max_length, max_rows

    def logits(self, tokens: Ints) -> Floats:
        """Logits after each token.  # (B, S) -> (B, S, V)"""
        logits: Floats = self._model.logits(tokens)
        return logits

    def forward(self, tokens: Ints, cache: Any = None, attention_mask: Ints | None = None) -> tuple[Floats, Any]:
        """Logits after each new token, and the longer cache; the old one is used up.

        Args:
            tokens: `# (B, S)`
            cache: what was read before; None for nothing.
            attention_mask: 1 where a token counts, 0 at padding on the left; None if all count. `# (B, P + S)`
        """
        logits, longer = self._model.forward(tokens, cache, attention_mask)
        return logits, longer


def open_target(target: Target, run: RunConfig) -> OpenTarget:
    """Load a model.

    Raises:
        InputError: a bundle that this provider cannot run.
        FormatError: a file is damaged.
        MachineError: the provider is not available here.
        MissingExtraError: what runs it is not installed.
    """
    if target.manifest is not None:
        from maskpro_deploy.runtime import SessionConfig, open_session

        config = SessionConfig(provider=run.provider, threads=run.threads, spin=False, form=run.form, engine=run.engine)
        session = open_session(target.folder, config)
        rows = [r for r in (session.limits.max_batch, session.limits.max_prefill_rows) if r is not None]
        return OpenTarget(session, session.shape.max_length, min(rows, default=None))
    require("learn", "running a checkpoint")
    import torch

    from maskpro_deploy.torch_lm import TorchLM

    if run.threads is not None:
        torch.set_num_threads(run.threads)
    device = _device(run.provider, torch.cuda.is_available())
    return OpenTarget(TorchLM.open(target.folder, getattr(torch, DTYPES[run.dtype]), device), target.max_length)


def _device(provider: str, cuda: bool) -> str:
    """Where torch runs a checkpoint; next to a bundle in TensorRT it takes the GPU if it can."""
    if provider == CUDA and not cuda:
        raise MachineError(f"--provider {CUDA}: torch finds no NVIDIA GPU here.\nRun on the CPU: --provider {CPU}.")
    return "cuda" if cuda and provider not in (CPU, GENAI) else "cpu"
