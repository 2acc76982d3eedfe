"""A LLaMA forward pass in plain numpy and float64, written for clarity: what the exported graphs are compared with.

It shares no code with the exporters: rotary embedding is the rotate-half form, attention is a loop over heads.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

Array = npt.NDArray[Any]


def inverse_frequencies(config: dict[str, Any], head_dim: int) -> list[float]:
    """Frequencies pair by pair, as the model cards describe them."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = float(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    result = []
    for i in range(head_dim // 2):
        f = 1.0 / theta ** (2 * i / head_dim)
        if kind == "linear":
            f /= scaling["factor"]
        elif kind == "llama3":
            wavelength, original = 2 * math.pi / f, scaling["original_max_position_embeddings"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            if wavelength > original / low:
                f /= scaling["factor"]
            elif wavelength > original / high:
                smooth = (original / wavelength - low) / (high - low)
                f = (1 - smooth) * f / scaling["factor"] + smooth * f
        result.append(f)
    return result


class NumpyLlama:
    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        files = [f for f in folder.glob("*.safetensors") if f.name != "masks.safetensors"]
        self.weights = {k: v.astype(np.float64) for f in files for k, v in load_file(f).items()}

    def logits(self, tokens: Array) -> Array:
        return np.stack([self._forward(row) for row in tokens]).astype(np.float32)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self._forward(np.asarray(tokens))[-1].argmax()))
        return tokens[len(prompt) :]

    def _linear(self, name: str, x: Array) -> Array:
        y: Array = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def _norm(self, name: str, x: Array) -> Array:
        normed: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * self.weights[f"{name}.weight"]
        return normed

    def _forward(self, tokens: Array) -> Array:
        c, length = self.config, len(tokens)
        heads, kv_heads = c["num_attention_heads"], c.get("num_key_value_heads", c["num_attention_heads"])
        d = c.get("head_dim", c["hidden_size"] // heads)
        angles = np.outer(np.arange(length), inverse_frequencies(c, d))
        cos, sin = (np.concatenate([f(angles)] * 2, axis=-1) for f in (np.cos, np.sin))

        def rope(x: Array) -> Array:
            turned: Array = x * cos + np.concatenate([-x[:, d // 2 :], x[:, : d // 2]], axis=-1) * sin
            return turned

        h = self.weights["model.embed_tokens.weight"][tokens]
        for i in range(c["num_hidden_layers"]):
            block = f"model.layers.{i}"
            x = self._norm(f"{block}.input_layernorm", h)
            q, k, v = (self._linear(f"{block}.self_attn.{p}_proj", x) for p in "qkv")
            out = []
            for head in range(heads):
                own = slice(head * d, (head + 1) * d)
                shared = slice(head * kv_heads // heads * d, (head * kv_heads // heads + 1) * d)
                scores = rope(q[:, own]) @ rope(k[:, shared]).T / math.sqrt(d)
                scores[np.triu_indices(length, 1)] = -np.inf
                p = np.exp(scores - scores.max(-1, keepdims=True))
                out.append(p / p.sum(-1, keepdims=True) @ v[:, shared])
            h = h + self._linear(f"{block}.self_attn.o_proj", np.concatenate(out, axis=-1))
            x = self._norm(f"{block}.post_attention_layernorm", h)
            gate = self._linear(f"{block}.mlp.gate_proj", x)
            gated = gate / (1 + np.exp(-gate)) * self._linear(f"{block}.mlp.up_proj", x)
            h = h + self._linear(f"{block}.mlp.down_proj", gated)
        output = "model.embed_tokens" if c["tie_word_embeddings"] else "lm_head"
        logits: Array = self._norm("model.norm", h) @ self.weights[f"{output}.weight"].T
        return logits
