"""LLaMA models of known sizes with random weights, made in code, and their fp16 bundles: time does not depend on the values.

Shapes: `K` inputs and `N` outputs of a linear layer.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import MachineError
from maskpro_deploy.pattern import NMPattern

PATTERN = NMPattern(2, 4)
DTYPE = "fp16"
_WITH_TWIN, _ALONE = 6, 5  # fp16 copies of the model on disk: two checkpoints, the bundles, two engines
_SPARE_BYTES = 1 << 30
_UNVERIFIED = "a random model for the GPU check"
_LOGIT_SPREAD = 3.0  # standard deviation of the logits: far above the noise of half precision, so that greedy tokens are stable


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes of a LLaMA with tied embeddings."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int = 2048

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden // self.heads

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """The linear layers of a block: name -> (N, K)."""
        attention = {"q": self.hidden, "k": self.kv_heads * self.head_dim, "v": self.kv_heads * self.head_dim, "o": self.hidden}
        return {
            **{f"self_attn.{name}_proj": (n, self.hidden) for name, n in attention.items()},
            **{f"mlp.{name}_proj": (self.intermediate, self.hidden) for name in ("gate", "up")},
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def pruned_weights(self) -> int:
        """Weights in the linear layers of all blocks."""
        return self.layers * sum(n * k for n, k in self.projections.values())

    @property
    def weights(self) -> int:
        """All weights but the norms'."""
        return self.pruned_weights + self.vocabulary * self.hidden

    def config(self) -> dict[str, Any]:
        """`config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.length,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        }


TINY = LlamaShape(name="tiny", hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, vocabulary=512, length=256)
SMOL = LlamaShape(name="135m", hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, vocabulary=49152)
ONE_B = LlamaShape(name="1b", hidden=2048, intermediate=8192, layers=16, heads=32, kv_heads=8, vocabulary=128256)
SEVEN_B = LlamaShape(name="7b", hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000)


def write_checkpoint(shape: LlamaShape, folder: Path, seed: int = 0) -> Path:
    """A dense checkpoint with random fp16 weights and a byte tokenizer, in a new folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file(_weights(shape, seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**shape.config(), "dtype": "float16"}), encoding="utf-8")
    _byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def write_sparse(dense: Path, out: Path) -> Path:
    """The same checkpoint with the largest two of every four weights kept."""
    from maskpro_deploy.checkpoint import Checkpoint, save_sparse
    from maskpro_deploy.masks import MaskSet

    checkpoint = Checkpoint.open(dense)
    names = [name for name in checkpoint.names if "_proj." in name]
    masks = {name: PATTERN.top(np.abs(checkpoint.tensor(name))) for name in names}
    save_sparse(checkpoint, MaskSet.from_arrays(PATTERN, masks, checkpoint.dense_sha256(names)), out, {"method": "magnitude"})
    return out


def _weights(shape: LlamaShape, seed: int) -> dict[str, npt.NDArray[np.float16]]:
    rng = np.random.default_rng(seed)

    def draw(rows: int, columns: int, spread: float) -> npt.NDArray[np.float16]:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        values *= np.float32(spread / math.sqrt(columns))
        return values.astype(np.float16)

    ones = np.ones(shape.hidden, np.float16)
    weights = {"model.embed_tokens.weight": draw(shape.vocabulary, shape.hidden, _LOGIT_SPREAD), "model.norm.weight": ones}
    for i in range(shape.layers):
        block = f"model.layers.{i}"
        weights |= {f"{block}.{norm}_layernorm.weight": ones.copy() for norm in ("input", "post_attention")}
        weights |= {f"{block}.{name}.weight": draw(n, k, 1.0) for name, (n, k) in shape.projections.items()}
    return weights


def _byte_tokenizer() -> Any:
    """A token for every byte: any text can be encoded, and every size of vocabulary from 259 on holds it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<|text|>", "<|start|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def make_bundles(shape: LlamaShape, scratch: Path) -> tuple[Path, Path]:
    """The sparse bundle of a random model and its dense twin; made by the item that first needs them.

    A `MachineError` where there is not enough space.
    """
    from maskpro_deploy.exporters import ExportConfig, export

    folder = scratch / shape.name
    sparse, dense = folder / "sparse-bundle", folder / "dense-bundle"
    if dense.is_dir():  # the last to be made
        return sparse, dense
    if folder.exists():  # an item was ended while it made them
        shutil.rmtree(folder)
    _check_space(shape, scratch, _WITH_TWIN)
    checkpoint = write_checkpoint(shape, folder / "dense")
    config = ExportConfig(dtype=DTYPE, forms=("cat", "static"))
    export(write_sparse(checkpoint, folder / "sparse"), sparse, config, unverified=_UNVERIFIED)
    export(checkpoint, dense, config, unverified=_UNVERIFIED)
    return sparse, dense


def make_sparse_bundle(shape: LlamaShape, scratch: Path) -> Path:
    """The sparse bundle of a random model in fp16, without a dense twin; MachineError as `make_bundles`."""
    from maskpro_deploy.exporters import ExportConfig, export

    folder = scratch / f"{shape.name}-alone"
    _check_space(shape, scratch, _ALONE)
    shutil.rmtree(folder, ignore_errors=True)  # of an item that was ended
    sparse = write_sparse(write_checkpoint(shape, folder / "dense"), folder / "sparse")
    shutil.rmtree(folder / "dense")
    export(sparse, folder / "bundle", ExportConfig(dtype=DTYPE), unverified=_UNVERIFIED)
    shutil.rmtree(sparse)
    return folder / "bundle"


def _check_space(shape: LlamaShape, scratch: Path, copies: int) -> None:
    needed, free = copies * 2 * shape.weights + _SPARE_BYTES, shutil.disk_usage(scratch).free
    if free < needed:
        raise MachineError(f"{scratch} needs {needed / 1e9:.1f} GB for a {shape.name} model, {free / 1e9:.1f} GB are free")
