"""The LLaMA decoder as an ONNX graph (LLaMA, SmolLM2, and Mistral without a sliding window).

    h = embedding[tokens]
    for every layer:
        h = h + o_proj(attention(rope(q_proj(x)), rope(k_proj(x)), v_proj(x)))     x = rms_norm(h)
        h = h + down_proj(silu(gate_proj(x)) * up_proj(x))                         x = rms_norm(h)
    logits = lm_head(rms_norm(h))

Every projection is a plain MatMul on a [K, N] constant: groups of an N:M pattern lie along axis 0, where TensorRT looks for
them. Norms compute in fp32 whatever the graph's dtype, and the logits come out in fp32.
Shapes: `B` batch, `S` new tokens, `E` hidden size, `F` intermediate size, `H` heads, `D` head size, `V` vocabulary.
"""

from __future__ import annotations

from onnx import TensorProto

from maskpro_deploy.exporters import rope
from maskpro_deploy.exporters.graph import Graph
from maskpro_deploy.exporters.kv_forms import KVForm
from maskpro_deploy.exporters.model_config import DecoderConfig

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


def build(config: DecoderConfig, form: KVForm, dtype: str) -> Graph:
    """The whole graph; weights are named, not read."""
    graph = Graph(dtype, form.opset)
    tokens = graph.input("input_ids", TensorProto.INT64, ["batch", "new"])
    graph.input("attention_mask", TensorProto.INT64, ["batch", "total"])
    graph.input("position_ids", TensorProto.INT64, ["batch", "new"])
    graph.output("logits", TensorProto.FLOAT, ["batch", "new", config.vocab_size])
    form.begin(graph, config)
    cos, sin = rope.tables(config.rope, config.head_dim, config.max_length)
    graph.values("rope.cos", cos)
    graph.values("rope.sin", sin)

    embedding = graph.weight(_EMBEDDING, (config.vocab_size, config.hidden_size))
    h = graph.op("Gather", embedding, tokens, name="/model/embed_tokens")  # (B, S, E)
    for layer in range(config.num_layers):
        h = _block(graph, config, form, layer, h)
    h = _norm(graph, config, "model.norm", h)
    _logits(graph, config, h)
    return graph


def _block(graph: Graph, config: DecoderConfig, form: KVForm, layer: int, h: str) -> str:
    """One layer.  # (B, S, E) -> (B, S, E)"""
    block = f"model.layers.{layer}"
    attended = _attention(graph, config, form, layer, _norm(graph, config, f"{block}.input_layernorm", h))
    h = graph.op("Add", h, attended, name=f"{_path(block)}/add_attention")
    fed = _mlp(graph, config, f"{block}.mlp", _norm(graph, config, f"{block}.post_attention_layernorm", h))
    return graph.op("Add", h, fed, name=f"{_path(block)}/add_mlp")


def _attention(graph: Graph, config: DecoderConfig, form: KVForm, layer: int, x: str) -> str:
    """Attention with rotary positions; key/value heads may be fewer than query heads.  # (B, S, E) -> (B, S, E)"""
    module = f"model.layers.{layer}.self_attn"
    e, d, bias = config.hidden_size, config.head_dim, config.attention_bias
    heads = {}
    for kind, count in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", config.num_kv_heads)):
        flat = _linear(graph, f"{module}.{kind}_proj", x, e, count * d, bias)  # (B, S, H D)
        split = graph.op("Reshape", flat, graph.ints(0, 0, count, d), name=f"{_path(module)}/{kind}_heads")
        heads[kind] = graph.op("Transpose", split, name=f"{_path(module)}/{kind}_transpose", perm=[0, 2, 1, 3])  # (B, H, S, D)
    for kind in ("q", "k"):
        inputs = (heads[kind], "rope.cos", "rope.sin", "position_ids")
        heads[kind] = graph.op("RotaryEmbedding", *inputs, name=f"{_path(module)}/{kind}_rope")
    out = form.attend(graph, layer, heads["q"], heads["k"], heads["v"], _path(module))  # (B, H, S, D)
    out = graph.op("Transpose", out, name=f"{_path(module)}/out_transpose", perm=[0, 2, 1, 3])
    flat = graph.op("Reshape", out, graph.ints(0, 0, config.num_heads * d), name=f"{_path(module)}/out_flat")
    return _linear(graph, f"{module}.o_proj", flat, config.num_heads * d, e, bias)


def _mlp(graph: Graph, config: DecoderConfig, module: str, x: str) -> str:
    """The gated feed-forward part.  # (B, S, E) -> (B, S, E)"""
    e, f = config.hidden_size, config.intermediate_size
    gate = _linear(graph, f"{module}.gate_proj", x, e, f, config.mlp_bias)  # (B, S, F)
    # Sigmoid and Mul instead of Swish: onnxruntime has no kernel for Swish
    sigmoid = graph.op("Sigmoid", gate, name=f"{_path(module)}/sigmoid")
    silu = graph.op("Mul", gate, sigmoid, name=f"{_path(module)}/silu")
    up = _linear(graph, f"{module}.up_proj", x, e, f, config.mlp_bias)
    gated = graph.op("Mul", silu, up, name=f"{_path(module)}/gated")
    return _linear(graph, f"{module}.down_proj", gated, f, e, config.mlp_bias)


def _logits(graph: Graph, config: DecoderConfig, h: str) -> None:
    """Scores of every token, in fp32.  # (B, S, E) -> (B, S, V)"""
    e, v = config.hidden_size, config.vocab_size
    if config.tied:  # the embedding is stored once; runtimes fold the Transpose when they load
        head = graph.op("Transpose", _EMBEDDING, name="/lm_head/tied", perm=[1, 0])
    else:
        head = graph.weight(_HEAD, (e, v), transposed=True)
    last = graph.dtype == "fp32"
    logits = graph.op("MatMul", h, head, name="/lm_head", output="logits" if last else None)
    if not last:
        graph.op("Cast", logits, name="/lm_head/float", output="logits", to=TensorProto.FLOAT)


def _linear(graph: Graph, module: str, x: str, k: int, n: int, bias: bool) -> str:
    """A projection with its weight as [K, N].  # (B, S, K) -> (B, S, N)"""
    y = graph.op("MatMul", x, graph.weight(f"{module}.weight", (k, n), transposed=True), name=_path(module))
    return graph.op("Add", y, graph.weight(f"{module}.bias", (n,)), name=f"{_path(module)}/bias") if bias else y


def _norm(graph: Graph, config: DecoderConfig, module: str, x: str) -> str:
    """The norm x / rms(x) * weight, computed in fp32.  # (B, S, E) -> (B, S, E)"""
    scale = graph.weight(f"{module}.weight", (config.hidden_size,))
    return graph.op("RMSNormalization", x, scale, name=_path(module), axis=-1, epsilon=config.norm_eps, stash_type=1)


def _path(module: str) -> str:
    """model.layers.0.mlp -> /model/layers.0/mlp, the grouping that graph viewers show."""
    return "/" + module.replace(".", "/").replace("/layers/", "/layers.")
