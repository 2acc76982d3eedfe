"""`--compare-dense`: the sparse engine and its dense twin from one graph, one set of profiles and one cache of kernel times.

Both stay in the bundle, and the sparse engine's report has the comparison. On a machine with a GPU both are timed in
a process of its own; elsewhere sizes and builds are compared, and the report says that no time was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from maskpro_deploy.backends.cuda.driver import compute_capability
from maskpro_deploy.backends.profiles import input_shapes
from maskpro_deploy.exporters.engines.config import EngineConfig
from maskpro_deploy.exporters.engines.preflight import Source
from maskpro_deploy.exporters.engines.process import time_in_process
from maskpro_deploy.exporters.engines.profiles import DECODE, PREFILL, Bucket
from maskpro_deploy.exporters.engines.report import EngineReport
from maskpro_deploy.exporters.engines.store import update_report
from maskpro_deploy.exporters.engines.timing.results import DENSE, NO_GPU, SPARSE, Comparison, Point
from maskpro_deploy.manifest import Graph, ModelShape, safe_path
from maskpro_deploy.system.progress import Progress

_POINTS_OF_A_BUCKET = 8  # batches are halved from the largest on


def compare_with_dense(
    source: Source, config: EngineConfig, scratch: Path, progress: Progress, build: Callable[..., EngineReport]
) -> EngineReport:
    """Build both engines, compare them, and write the comparison into the sparse engine's report.

    `config` is that of the sparse engine; `build` makes or finds one: (source, config, scratch, progress).
    """
    # without a file of the user's, one for these two builds
    cache = config.timing_cache if config.timing_cache is not None else scratch / "timing.cache"
    once = dataclasses.replace(config, compare_dense=False, timing_cache=cache)
    sparse = build(source, once, scratch, progress)
    dense = build(source, dataclasses.replace(once, dense=True), scratch, progress)
    files = {name: safe_path(source.bundle, r.engine.file) for name, r in ((SPARSE, sparse), (DENSE, dense))}
    comparison = Comparison(
        dense_file=dense.engine.file,
        sparse_bytes=sparse.bytes,
        dense_bytes=dense.bytes,
        sparse_build_s=sparse.build_s,
        dense_build_s=dense.build_s,
        not_measured="" if compute_capability() is not None else NO_GPU,
    )
    if not comparison.not_measured:
        points = points_for(source.graph, source.manifest.model, source.buckets, source.length)
        nodes = {row.weight: row.node for row in sparse.layers}
        measured = time_in_process(
            scratch, source.library, files, points, nodes, source.manifest.model.vocab_size, config.compare_budget_s, progress
        )
        comparison = dataclasses.replace(comparison, points=measured)
    report = dataclasses.replace(sparse, comparison=comparison)
    update_report(source.bundle, source.manifest, report)
    return report


def points_for(graph: Graph, model: ModelShape, buckets: Sequence[Bucket], length: int) -> list[Point]:
    """What to time: each profile at its largest size and at halved batches, the largest of all first.

    Prefill is timed without a past, decode in the middle of the longest sequence.
    """
    points: dict[str, Point] = {}
    for index, bucket in enumerate(buckets):
        for batch in _batches(bucket):
            kind, new = (DECODE, 1) if bucket.kind == DECODE else (PREFILL, bucket.most[1])
            past = length // 2 if kind == DECODE else 0
            point = Point(
                kind=kind, batch=batch, new=new, past=past, profile=index, shapes=input_shapes(graph, model, batch, new, past)
            )
            points.setdefault(point.name, point)  # the first bucket that holds a call takes it
    return sorted(points.values(), key=lambda p: (p.kind == DECODE, -p.batch * p.new))


def _batches(bucket: Bucket) -> list[int]:
    """The largest batch and its halves, down to the least."""
    sizes = [bucket.most[0]]
    while sizes[-1] // 2 >= bucket.least[0] and len(sizes) < _POINTS_OF_A_BUCKET:
        sizes.append(sizes[-1] // 2)
    return sizes
