"""The parts that decoders are made of, as operators of an ONNX graph.

An architecture's file says how the parts are put together and reads like its paper. Every projection is a plain MatMul on a
[K, N] constant: groups of an N:M pattern lie along axis 0, where TensorRT looks for them. Projections that a checkpoint
stores as one tensor are taken apart. Norms compute in fp32 whatever the graph's dtype, and the logits come out in fp32.

Shapes: `B` batch, `S` new tokens, `E` hidden size, `F` intermediate size, `H` heads, `D` head size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnx import TensorProto

from maskpro_deploy.exporters.graph.builder import Attribute, Graph, Weight
from maskpro_deploy.exporters.graph.cache_forms.base import KVForm
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.quantization import Quantization
from maskpro_deploy.exporters.graph.rope import RopeConfig, make_tables, second_table_start
from maskpro_deploy.pattern import NMPattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Where a projection lies if it is no tensor of its own: outputs `start` and following of the `whole` ones of `module`.

    `transposed`: the checkpoint stores (N, K), as torch's Linear does; GPT-2 stores [K, N].
    """

    module: str
    start: int = 0
    whole: int = 0
    transposed: bool = True


class Layers:
    """A graph under construction for one decoder and one form of the cache, with the parts of decoders as methods.

    `read_pattern` says which pattern a tensor of the checkpoint holds: only projections that hold the same one, or none, become
    one weight, since a proof and an engine's choice of kernels are about whole weights.
    """

    def __init__(
        self, config: DecoderConfig, form: KVForm, dtype: str, quantization: Quantization | None = None,
        read_pattern: Callable[[str], NMPattern | None] = lambda source: None,
    ) -> None:  # fmt: skip
        self.config, self.form, self._read_pattern = config, form, read_pattern
        self.graph = graph = Graph(dtype, form.facts.opset, quantization)
        self.tokens = graph.input("input_ids", TensorProto.INT64, ["batch", "new"])
        form.begin(graph, config)
        self._tables = self._add_rope_tables()
        self._norm_settings: dict[str, Attribute] = {"axis": -1, "epsilon": config.norm_eps, "stash_type": 1}

    # -- into the layers and out of them --------------------------------------------------------------------------------------

    def embedding(self, module: str, scale: float | None = None) -> str:
        """Rows of the token table.  # (B, S) -> (B, S, E)"""
        table = self.plain(f"{module}.weight", self.config.vocab_size, self.config.hidden_size)
        h = self.graph.op("Gather", table, self.tokens, name=_path(module))
        return h if scale is None else self.graph.op("Mul", h, self.graph.real(scale), name=f"{_path(module)}/scale")

    def positions(self, module: str, offset: int = 0) -> str:
        """Rows of a learned table of positions.  # (B, S) -> (B, S, E)"""
        table = self.plain(f"{module}.weight", self.config.max_length + offset, self.config.hidden_size, longer=True)
        rows = "position_ids"
        if offset:
            rows = self.graph.op("Add", rows, self.graph.scalar(offset), name=f"{_path(module)}/offset")
        return self.graph.op("Gather", table, rows, name=_path(module))

    def logits(self, h: str, head: str, embedding: str) -> Graph:
        """Scores of every token, in fp32, as output; a tied head reads the table of `embedding`.  # (B, S, E) -> (B, S, V)"""
        graph, config = self.graph, self.config
        e, v = config.hidden_size, config.vocab_size
        if config.tied and graph.quantization is None:  # stored once; runtimes fold the Transpose when they load
            weight = graph.op("Transpose", f"{embedding}.weight", name=f"/{head}/tied", perm=[1, 0])
        else:
            source = f"{embedding if config.tied else head}.weight"
            stored = Weight(name=f"{head}.weight", shape=(e, v), source=source, transposed=True)
            weight = graph.matrix(stored, graph.quantization.of_head() if graph.quantization is not None else None)
        y = graph.op("MatMul", h, weight, name=f"/{head}")
        if config.logit_softcap is not None:
            y = self.softcap(y, config.logit_softcap, f"/{head}")
        if graph.dtype == "fp32":
            graph.nodes[-1].output[0] = "logits"
        else:
            graph.op("Cast", y, name=f"/{head}/float", output="logits", to=TensorProto.FLOAT)
        graph.output("logits", TensorProto.FLOAT, ["batch", "new", v])
        self.form.finish(graph)
        return graph

    # -- inside a layer -------------------------------------------------------------------------------------------------------

    def linear(self, module: str, x: str, k: int, n: int, *, bias: bool = False, part: Part | None = None) -> str:
        """A projection with its weight as [K, N].  # (B, S, K) -> (B, S, N)"""
        part = part if part is not None else Part(module=module)
        added = _describe_bias(module, part, n) if bias else None
        return self._multiply(module, x, _describe_projection(module, part, k, n), added)

    def linears(
        self, module: str, x: str, k: int, columns: Mapping[str, int], *, bias: bool = False, parts: Sequence[Part] | None = None
    ) -> str:
        """Several projections (name -> N) of one input as one product, side by side.  # (B, S, K) -> (B, S, sum of N)"""
        places = parts if parts is not None else [Part(module=name) for name in columns]
        weights = tuple(_describe_projection(n, part, k, size) for part, (n, size) in zip(places, columns.items(), strict=True))
        biases = tuple(_describe_bias(n, part, size) for part, (n, size) in zip(places, columns.items(), strict=True))
        n = sum(columns.values())
        added = Weight(name=f"{module}.bias", shape=(n,), parts=biases) if bias else None
        return self._multiply(module, x, Weight(name=f"{module}.weight", shape=(k, n), projection=True, parts=weights), added)

    def _hold_alike(self, modules: Sequence[str]) -> bool:
        """Whether the weights of projections hold the same pattern, or none."""
        return len({self._read_pattern(f"{module}.weight") for module in modules}) == 1

    def _multiply(self, module: str, x: str, weight: Weight, bias: Weight | None) -> str:
        y = self.graph.op("MatMul", x, self.graph.matrix(weight, self.graph.quantization), name=_path(module))
        if bias is None:
            return y
        return self.graph.op("Add", y, self.graph.weight(bias), name=f"{_path(module)}/bias")

    def rms_norm(self, module: str, x: str, *, plus: float = 0.0, size: int | None = None) -> str:
        """The norm x / rms(x) * (plus + weight) over the last axis, computed in fp32."""
        scale = Weight(name=f"{module}.weight", shape=(size or self.config.hidden_size,), source=f"{module}.weight", plus=plus)
        return self.graph.op("RMSNormalization", x, self.graph.weight(scale), name=_path(module), settings=self._norm_settings)

    def layer_norm(self, module: str, x: str) -> str:
        """The norm (x - mean(x)) / std(x) * weight + bias over the last axis, computed in fp32."""
        parts = [self.plain(f"{module}.{kind}", self.config.hidden_size) for kind in ("weight", "bias")]
        return self.graph.op("LayerNormalization", x, *parts, name=_path(module), settings=self._norm_settings)

    def attention(
        self,
        layer: int,
        module: str,
        x: str,
        *,
        names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
        parts: Sequence[Part] | None = None,
        out: Part | None = None,
        head_norm: bool = False,
        plus: float = 0.0,
    ) -> str:
        """Attention of a layer; key/value heads may be fewer than query heads.  # (B, S, E) -> (B, S, E)

        `names` are the graph's of the four projections. `parts` and `out` tell where q, k and v, and the output projection, lie,
        if not in modules of these names. With `head_norm`, q and k of each head are normed, with `plus` in the scale.
        """
        config, path = self.config, _path(module)
        rope = config.ropes[layer]
        tables = self._tables[rope] if rope is not None else None
        inside = tables is not None and self.form.applies_rope(config, rope, tables[2])  # the form rotates q and k itself
        sources = [part.module for part in parts] if parts is not None else [f"{module}.{name}" for name in names[:3]]
        if self.form.packed and not head_norm and (tables is None or inside) and self._hold_alike(sources):
            q, k, v = self._project_packed(module, x, names, parts), "", ""
        else:
            q, k, v = self._project_heads(module, x, names, parts, plus if head_norm else None, None if inside else rope)
        cos_sin = tables[:2] if tables is not None and inside else None
        y = self.attend(layer, q, k, v, path, cos_sin)
        width = config.num_heads * config.head_dim
        return self.linear(f"{module}.{names[3]}", y, width, config.hidden_size, bias=config.output_bias, part=out)

    def attend(self, layer: int, q: str, k: str, v: str, path: str, rope: tuple[str, str] | None = None) -> str:
        """The form's attention (`KVForm.attend`), its heads side by side.  # -> (B, S, H D)"""
        graph, y = self.graph, self.form.attend(self.graph, layer, q, k, v, path, rope=rope)
        if self.form.flat:
            return y
        y = graph.op("Transpose", y, name=f"{path}/out_transpose", perm=[0, 2, 1, 3])
        return graph.op("Reshape", y, graph.ints(0, 0, self.config.num_heads * self.config.head_dim), name=f"{path}/out_flat")

    def _project_packed(self, module: str, x: str, names: Sequence[str], parts: Sequence[Part] | None) -> str:
        """Queries, keys and values side by side, from one product.  # (B, S, E) -> (B, S, (H + 2 G) D)"""
        config = self.config
        counts = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        columns = {f"{module}.{name}": n * config.head_dim for name, n in zip(names[:3], counts, strict=True)}
        return self.linears(f"{module}.qkv_proj", x, config.hidden_size, columns, bias=config.attention_bias, parts=parts)

    def _project_heads(
        self, module: str, x: str, names: Sequence[str], parts: Sequence[Part] | None, plus: float | None, rope: RopeConfig | None
    ) -> list[str]:
        """Queries, keys and values, from a product each; q and k are normed where `plus` is given, turned where `rope` is."""
        config, path = self.config, _path(module)
        heads = []
        for i, (kind, count) in enumerate((("q", config.num_heads), ("k", config.num_kv_heads), ("v", config.num_kv_heads))):
            width, part = count * config.head_dim, parts[i] if parts is not None else None
            y = self.linear(f"{module}.{names[i]}", x, config.hidden_size, width, bias=config.attention_bias, part=part)
            turned = kind != "v"
            y = self.split_heads(y, count, f"{path}/{kind}", f"{module}.{kind}_norm", plus if turned else None)
            heads.append(self._turn(rope, y, count, f"{path}/{kind}") if turned and rope is not None else y)
        return heads

    def gated_mlp(self, module: str, x: str, *, parts: Sequence[Part] | None = None) -> str:
        """down(act(gate(x)) * up(x)).  # (B, S, E) -> (B, S, E)"""
        e, f, bias = self.config.hidden_size, self.config.intermediate_size, self.config.mlp_bias
        gate_part, up_part = parts if parts is not None else (None, None)
        gate_name, up_name = f"{module}.gate_proj", f"{module}.up_proj"
        sources = [part.module for part in parts] if parts is not None else [gate_name, up_name]
        if self.form.packed and self._hold_alike(sources):
            both = self.linears(f"{module}.gate_up_proj", x, e, {gate_name: f, up_name: f}, bias=bias, parts=parts)
            gate, up = (f"{_path(name)}/out" for name in (gate_name, up_name))  # (B, S, F)
            self.graph.op("Split", both, name=f"{_path(module)}/split", output=gate, more_outputs=[up], axis=-1, num_outputs=2)
        else:
            gate = self.linear(gate_name, x, e, f, bias=bias, part=gate_part)  # (B, S, F)
            up = self.linear(up_name, x, e, f, bias=bias, part=up_part)
        gated = self.graph.op("Mul", self.activation(gate, _path(module)), up, name=f"{_path(module)}/gated")
        return self.linear(f"{module}.down_proj", gated, f, e, bias=bias)

    def activation(self, x: str, path: str) -> str:
        """The configured nonlinearity, value by value."""
        graph, kind = self.graph, self.config.activation
        if kind == "silu":  # Sigmoid and Mul instead of Swish: onnxruntime has no kernel for Swish
            return graph.op("Mul", x, graph.op("Sigmoid", x, name=f"{path}/sigmoid"), name=f"{path}/silu")
        if kind == "relu":
            return graph.op("Relu", x, name=f"{path}/relu")
        return graph.op("Gelu", x, name=f"{path}/gelu", approximate="tanh" if kind == "gelu_tanh" else "none")

    def softcap(self, x: str, limit: float, path: str) -> str:
        """Limit * tanh(x / limit), value by value."""
        graph = self.graph
        small = graph.op("Mul", x, graph.real(1 / limit), name=f"{path}/cap_in")
        return graph.op("Mul", graph.op("Tanh", small, name=f"{path}/cap"), graph.real(limit), name=f"{path}/cap_out")

    def add(self, name: str, x: str, y: str) -> str:
        """The residual sum."""
        return self.graph.op("Add", x, y, name=_path(name))

    def plain(self, name: str, *shape: int, longer: bool = False) -> str:
        """A tensor of the checkpoint as it is; with `longer`, of which only the first rows may be wanted."""
        return self.graph.weight(Weight(name=name, shape=shape, source=name, longer=longer))

    # -- heads and positions --------------------------------------------------------------------------------------------------

    def split_heads(self, y: str, count: int, path: str, norm: str = "", plus: float | None = None) -> str:
        """Split into heads, and norm each where the architecture does.  # (B, S, H D) -> (B, H, S, D), flat forms: as it was"""
        graph, d = self.graph, self.config.head_dim
        if self.form.flat and plus is None:
            return y
        y = graph.op("Reshape", y, graph.ints(0, 0, count, d), name=f"{path}_heads")
        if plus is not None:
            y = self.rms_norm(norm, y, plus=plus, size=d)
        if self.form.flat:
            return graph.op("Reshape", y, graph.ints(0, 0, count * d), name=f"{path}_flat")
        return graph.op("Transpose", y, name=f"{path}_transpose", perm=[0, 2, 1, 3])

    def _turn(self, kind: RopeConfig, y: str, count: int, path: str) -> str:
        """Rotary embedding."""
        settings: dict[str, Attribute] = {}
        if self.form.flat:
            settings["num_heads"] = count
        if kind.dim and kind.dim != self.config.head_dim:
            settings["rotary_embedding_dim"] = kind.dim
        return self.graph.op("RotaryEmbedding", y, *self._tables[kind], name=f"{path}_rope", settings=settings)

    def _add_rope_tables(self) -> dict[RopeConfig, tuple[str, str, str]]:
        """For each kind of rotary embedding: its cosines, its sines, and the row of each new token."""
        names: dict[RopeConfig, tuple[str, str, str]] = {}
        for kind in dict.fromkeys(k for k in self.config.ropes if k is not None):
            label = f"rope.{len(names)}" if names else "rope"
            cos, sin = make_tables(kind, self.config.head_dim, self.config.max_length)
            self.graph.values(f"{label}.cos", cos)
            self.graph.values(f"{label}.sin", sin)
            rows = self._add_table_rows(kind, f"/{label}")
            names[kind] = (f"{label}.cos", f"{label}.sin", rows)
        return names

    def _add_table_rows(self, kind: RopeConfig, path: str) -> str:
        """Rows of the tables: a sequence that grew beyond the original length reads the second table."""
        start = second_table_start(kind, self.config.max_length)
        if not start:
            return "position_ids"
        graph = self.graph
        last = graph.op("ReduceMax", "position_ids", graph.ints(1), name=f"{path}/last", keepdims=1)  # (B, 1)
        beyond = graph.op("GreaterOrEqual", last, graph.scalar(start), name=f"{path}/beyond")
        offset = graph.op("Where", beyond, graph.scalar(start), graph.scalar(0), name=f"{path}/offset")
        return graph.op("Add", "position_ids", offset, name=f"{path}/rows")


def _describe_projection(module: str, part: Part, k: int, n: int) -> Weight:
    """The weight of a projection as [K, N]."""
    return Weight(
        name=f"{module}.weight",
        shape=(k, n),
        source=f"{part.module}.weight",
        transposed=part.transposed,
        projection=True,
        start=part.start,
        whole=part.whole,
    )


def _describe_bias(module: str, part: Part, n: int) -> Weight:
    """Its bias."""
    return Weight(name=f"{module}.bias", shape=(n,), source=f"{part.module}.bias", start=part.start, whole=part.whole)


def _path(module: str) -> str:
    """model.layers.0.mlp -> /model/layers.0/mlp, the grouping that graph viewers show."""
    return "/" + module.replace(".", "/").replace("/layers/", "/layers.").replace("/h/", "/h.")
