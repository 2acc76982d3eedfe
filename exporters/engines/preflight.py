"""What is known of a graph's weights before a builder sees them: which could run on sparse tensor cores, and why others cannot.

Everything is read from the graph's final bytes. A weight that the checkpoint pruned can still be lost on the way: its zeros lie
along the wrong axis, it was padded, or a DequantizeLinear stands between it and its product. Such *spoiled* weights are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskpro_deploy.errors import CheckFailed, ConfigError
from maskpro_deploy.exporters.checks.proof import count_groups
from maskpro_deploy.exporters.engines.config import SPARSE_TENSOR_CORES, EngineConfig
from maskpro_deploy.exporters.engines.profiles import Bucket
from maskpro_deploy.exporters.graph.data_file import INT4
from maskpro_deploy.exporters.graph.weights import MatMulWeight
from maskpro_deploy.manifest import Graph, Manifest, SparseWeight, safe_path
from maskpro_deploy.validation.law import Tally
from maskpro_deploy.validation.report import tensor_core_class

WRONG_AXIS, PADDING, BEHIND_QDQ = "wrong axis", "padding", "behind Q/DQ"
# what sparse kernels ask of K and N, by the width of a weight in bytes (the minima that cuSPARSELt's users enforce)
_ALIGNED = {2: 16, 1: 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFacts:
    """One MatMul weight of the graph."""

    weight: MatMulWeight  # which, and where its bytes are
    count: Tally | None  # its groups of 2:4 along K; None if K does not consist of whole groups
    reason: str  # why sparse tensor cores cannot run it; "" if they can
    tensor_cores: str  # "fits", "small" (K or N at most 256: rarely faster) or "misaligned", by shape and dtype
    spoiled: str  # how the graph lost a pattern that the checkpoint had; "" if it did not


@dataclass(frozen=True, slots=True)
class Source:
    """A checked bundle, the graph to build, and for what."""

    bundle: Path
    manifest: Manifest  # as it was when the hashes were checked
    graph: Graph  # what is built
    weights: tuple[WeightFacts, ...]
    buckets: tuple[Bucket, ...]  # its profiles, and the longest sequence
    length: int
    library: str  # what builds, and for what
    target: str

    @property
    def path(self) -> Path:
        """The graph's file."""
        return safe_path(self.bundle, self.graph.file)


def list_for_tensor_cores(manifest: Manifest) -> list[SparseWeight]:
    """The sparse weights that hold the bundle's own pattern; others have no sparse kernels."""
    return [listed for listed in manifest.sparse_weights if listed.pattern is None]


def inspect_weights(manifest: Manifest, weights: Sequence[MatMulWeight]) -> tuple[WeightFacts, ...]:
    """Look at every weight once."""
    pruned = {listed.initializer: listed.shape for listed in list_for_tensor_cores(manifest)}
    return tuple(_facts(weight, manifest.graph.dtype, pruned.get(weight.initializer)) for weight in weights)


def _facts(weight: MatMulWeight, dtype: str, pruned: tuple[int, ...] | None) -> WeightFacts:
    k, n = weight.region.shape
    divides = k % SPARSE_TENSOR_CORES.m == 0
    count = count_groups(weight.file, weight.initializer, weight.region, SPARSE_TENSOR_CORES) if divides else None
    return WeightFacts(
        weight=weight,
        count=count,
        reason=_reason(weight, dtype, count),
        tensor_cores=tensor_core_class(k, n, _width(weight)),
        spoiled="" if pruned is None else _explain_spoiled(weight, count, pruned),
    )


def _width(weight: MatMulWeight) -> int:
    """Bytes of a weight as it is multiplied: a weight that is dequantised for a float product is as wide as that."""
    return 1 if weight.input_quantised else max(2, weight.region.dtype.itemsize)


def _reason(weight: MatMulWeight, dtype: str, count: Tally | None) -> str:
    k, n = weight.region.shape
    if count is None:
        return f"K {k} is not a multiple of {SPARSE_TENSOR_CORES.m}"
    if count.over:
        return f"does not hold {SPARSE_TENSOR_CORES}"
    if weight.dequantised and not weight.input_quantised:
        stored = "int4" if weight.region.dtype == INT4 else weight.region.dtype.name
        return f"{stored} behind DequantizeLinear: no sparse kernel"
    if dtype == "fp32" and not weight.input_quantised:
        return "fp32: sparse tensor cores take 16 and 8 bits"
    aligned = _ALIGNED[_width(weight)]
    if k % aligned or n % aligned:
        return f"K {k} or N {n} is not a multiple of {aligned}"
    return ""


def _explain_spoiled(weight: MatMulWeight, count: Tally | None, pruned: tuple[int, ...]) -> str:
    if weight.region.shape != pruned:
        return PADDING
    if count is None or count.over:
        return WRONG_AXIS
    return BEHIND_QDQ if weight.dequantised and not weight.input_quantised else ""


def count_spoiled(facts: Sequence[WeightFacts]) -> dict[str, int]:
    """How many pruned weights the graph spoils, by cause."""
    return {cause: sum(f.spoiled == cause for f in facts) for cause in (WRONG_AXIS, PADDING, BEHIND_QDQ)}


def prove(bundle: Path, manifest: Manifest, facts: Sequence[WeightFacts], config: EngineConfig) -> None:
    """Check that every weight that the manifest lists holds the pattern; CheckFailed if not, ConfigError for another pattern."""
    if not manifest.sparse_weights:
        raise CheckFailed(
            f"{bundle} does not hold {config.sparsity}: it is a dense bundle.\n"
            f"Export a sparse checkpoint, or build a dense engine with --dense."
        )
    if manifest.sparsity != str(config.sparsity):
        raise ConfigError(
            f"{bundle} holds {manifest.sparsity}; only {config.sparsity} has sparse tensor cores.\n"
            f"Build a dense engine from it with --dense."
        )
    by_name = {f.weight.initializer: f for f in facts}
    for listed in list_for_tensor_cores(manifest):
        fact = by_name.get(listed.initializer)
        if fact is None:
            raise CheckFailed(f"{bundle}: no MatMul of the graph uses {listed.initializer}, which the manifest lists as sparse.")
        if fact.count is None or fact.count.over:
            over, groups = (fact.count.over, fact.count.groups) if fact.count is not None else (0, 0)
            what = f"{over} of {groups} groups with more than {config.sparsity.n} non-zeros" if groups else fact.reason
            raise CheckFailed(
                f"{bundle} does not hold {config.sparsity}: {listed.initializer} has {what} (node {fact.weight.node}).\n"
                f"Export it again, or build a dense engine with --dense."
            )
