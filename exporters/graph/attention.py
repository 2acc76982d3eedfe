"""Attention over given keys and values under a mask that is a part of the graph.

One Attention node where runtimes have a kernel for it. With a softcap it is spelled out: TensorRT and onnxruntime's CUDA
kernels refuse the attribute.

Shapes: `B` batch, `S` new tokens, `T` slots of the cache, `H` heads, `G` key/value heads, `D` head size.
"""

from __future__ import annotations

from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig


def add_attention(graph: Graph, config: DecoderConfig, q: str, k: str, v: str, mask: str, name: str) -> str:
    """Attention of queries over keys and values.  # (B, H, S, D), (B, G, T, D) twice -> (B, H, S, D)

    Args:
        graph: where the operators go.
        config: heads, scale, softcap.
        q: queries.
        k: keys.
        v: values.
        mask: bool, true where a token may look, (B, 1, S, T).
        name: path of the nodes.
    """
    if config.attention_softcap is None:
        return graph.op("Attention", q, k, v, mask, name=f"{name}/attention", is_causal=0, scale=config.scale)
    heads, groups, cap = config.num_heads, config.num_kv_heads, config.attention_softcap
    # the queries that share a key head lie one below the other: one product for all of them, no copies of the keys
    folded = graph.op("Reshape", q, graph.ints(0, groups, -1, config.head_dim), name=f"{name}/fold")  # (B, G, H/G S, D)
    turned = graph.op("Transpose", k, name=f"{name}/keys", perm=[0, 1, 3, 2])  # (B, G, D, T)
    scores = graph.op("MatMul", folded, turned, name=f"{name}/scores")
    scores = graph.op("Mul", scores, graph.real(config.scale / cap), name=f"{name}/scale")
    scores = graph.op("Mul", graph.op("Tanh", scores, name=f"{name}/tanh"), graph.real(cap), name=f"{name}/cap")
    scores = graph.op("Reshape", scores, graph.ints(0, heads, -1, 0), name=f"{name}/by_head")  # (B, H, S, T)
    scores = graph.op("Where", mask, scores, graph.lowest(), name=f"{name}/masked")
    shares = graph.op("Softmax", scores, name=f"{name}/softmax", axis=-1)
    shares = graph.op("Reshape", shares, graph.ints(0, groups, -1, 0), name=f"{name}/by_group")
    mixed = graph.op("MatMul", shares, v, name=f"{name}/mix")  # (B, G, H/G S, D)
    return graph.op("Reshape", mixed, graph.ints(0, heads, -1, config.head_dim), name=f"{name}/unfold")
