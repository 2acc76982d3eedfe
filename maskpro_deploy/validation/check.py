"""`validate`: read a path, count its groups, judge.

Without a pattern, the one that masks or manifest claim is taken; where nothing is claimed, the usual patterns are looked for, and
the one that most tensors hold becomes the one that all must hold.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Literal

import numpy as np

from maskpro_deploy.pattern import USUAL_PATTERNS, NMPattern
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.validation.formats.bitmask_parts import ExpandedArray
from maskpro_deploy.validation.formats.readers import open_source
from maskpro_deploy.validation.law import Scan, Tally, scan
from maskpro_deploy.validation.report import Across, TensorReport, ValidationReport, alignment, tensor_core_class
from maskpro_deploy.validation.source import Account, Source, Stored, Unchecked, Weight, settle

Require = Literal["listed", "all"]

_MOST_THREADS = 8
_WORTH_THREADS = 1 << 22  # weights


def validate(
    path: Path,
    pattern: NMPattern | None = None,
    *,
    at_most: bool = False,
    transposable: bool = False,
    require: Require = "listed",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> ValidationReport:
    """Prove or refute that a file or folder holds an N:M pattern.

    Args:
        path: a checkpoint folder, a safetensors, mask or ONNX file, or a bundle.
        pattern: what it has to hold; None takes what it claims, or finds out.
        at_most: allow groups with fewer than N nonzeros (what sparse hardware needs) instead of exactly N.
        transposable: ask that the transposes of the weights hold it, too; asked in any case where masks claim so.
        require: "listed": the verdict is about the weights that masks or manifest name, or about all linear layers where
            nothing is named. "all": about all linear layers in any case. Embeddings, norms and the output head never count
            unless they are listed.
        threads: that count; by default as many as there are cores, at most 8.
        progress: gets the number of weights.

    Returns:
        The report; `report.holds` is the answer. It never holds where nothing was checked.

    Raises:
        InputError: the path does not exist or is of no known kind.
        FormatError: it is damaged, names files outside itself, or was changed while it was being read.
    """
    path = Path(path)
    source = open_source(path, progress)
    by_list = source.has_list and require == "listed"
    required = [w.listed or (w.linear and not by_list) for w in source.weights]
    given = pattern or source.pattern
    # what is asked for holds for all weights; what a source claims may differ from one to another
    claims = [(w.pattern if pattern is None else None) or given for w in source.weights]
    patterns = [(claim,) if claim else USUAL_PATTERNS for claim in claims]
    both_ways = transposable or source.transposable
    scans = _scan_all(source, patterns, at_most, both_ways, threads or _count_cores(), progress)
    for file in source.inputs:
        file.check_unchanged()
    expanded = [(w.name, w.data) for w in source.weights if isinstance(w.data, ExpandedArray)]
    contradictions = [f"{name}: {data.contradiction}" for name, data in expanded if data.contradiction]
    unchecked = tuple(u for u in source.unchecked if require == "all" or not u.declared)
    chosen = given or _find_common_pattern([along for (along, _), needed in zip(scans, required, strict=True) if needed])
    reports = [
        _report_tensor(weight, along, across, claim or chosen, at_most, needed)
        for weight, (along, across), claim, needed in zip(source.weights, scans, claims, required, strict=True)
    ]
    return ValidationReport(
        path=str(path),
        kind=source.kind,
        pattern=chosen,
        detected=given is None and chosen is not None,
        at_most=at_most,
        transposable=both_ways,
        require=require,
        tensors=tuple(reports),
        unchecked=unchecked,
        account=_settle_account(source, reports, unchecked),
        problems=(*source.problems, *contradictions),
        notes=source.notes,
        left_dense=source.left_dense,
        num_parameters=source.num_parameters,
        multiply_adds=source.multiply_adds,
    )


def _settle_account(source: Source, reports: Sequence[TensorReport], unchecked: Sequence[Unchecked]) -> Account:
    proven: set[str] = set()
    broken: set[str] = set()
    declared = {u.name for u in source.unchecked if u.declared}
    for weight, report in zip(source.weights, reports, strict=True):
        if report.required:
            (proven if report.holds else broken).update(weight.made_of)
        elif weight.linear:
            declared.update(weight.made_of)
    stored = source.stored or tuple(_as_stored(w) for w in source.weights)
    files = {file.path: file.size for file in source.tensor_files or source.inputs}
    return settle(stored, proven, broken, declared, {u.name for u in unchecked}, sum(files.values()))


def _as_stored(weight: Weight) -> Stored:
    """A weight as a stored tensor of its own, where the file holds nothing else."""
    size = -(-weight.size // 8) if weight.dtype == "bit" else weight.size * _BYTES.get(weight.dtype, 1)
    return Stored(name=weight.name, shape=weight.shape, bytes=size, rule=None, elements=weight.size)


def _count_cores() -> int:
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


BothScans = tuple[Scan, Scan | None]  # along the reduction axis, and across it if that was asked for


def _scan_all(
    source: Source, patterns: Sequence[tuple[NMPattern, ...]], at_most: bool, both_ways: bool, threads: int, progress: Progress
) -> list[BothScans]:
    """Count all weights, each by its patterns, one thread a weight, large ones first; with `both_ways` their transposes too."""
    total, done = sum(w.size * (1 + (both_ways and _is_matrix(w))) for w in source.weights), 0
    lock, failed = threading.Lock(), threading.Event()

    def advance(elements: int) -> None:
        nonlocal done
        with lock:
            if failed.is_set():
                raise _Stopped
            done += elements
            progress.update(done, total)

    def one(place: int) -> BothScans:
        w = source.weights[place]

        def count(axis: int) -> Scan:
            return scan(w.data, w.shape, axis, patterns[place], mask=w.mask, at_most=at_most, done=advance)

        if not both_ways:
            return count(w.axis), None
        return count(w.axis), count(1 - w.axis) if _is_matrix(w) else Scan([])

    if threads == 1 or total < _WORTH_THREADS:
        return [one(i) for i in range(len(source.weights))]
    order = sorted(range(len(source.weights)), key=lambda i: -source.weights[i].size)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        futures = {i: pool.submit(one, i) for i in order}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
            broken = [e for f in futures.values() if f.done() and (e := f.exception()) is not None]
            if broken:
                raise next((e for e in broken if not isinstance(e, _Stopped)), broken[0])
            return [futures[i].result() for i in range(len(futures))]
        except BaseException:  # an interrupt, too: let the other threads end at their next tile
            failed.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_matrix(weight: Weight) -> bool:
    return len(weight.shape) == 2


class _Stopped(Exception):
    """Another weight could not be read: stop counting this one."""


def _find_common_pattern(scans: list[Scan]) -> NMPattern | None:
    """The pattern that most tensors hold; of several, the finest."""
    votes = Counter(t.pattern for s in scans for t in s.tallies if t.lawful)
    return max(USUAL_PATTERNS, key=lambda p: votes[p]) if votes else None


def _find_tally(counts: Scan, pattern: NMPattern | None) -> Tally:
    return next((t for t in counts.tallies if t.pattern == pattern), Tally(NMPattern(1, 2)))


def _places(tally: Tally, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Coordinates of the first weight of the first few groups that break the law."""
    return tuple(tuple(int(i) for i in np.unravel_index(at, shape)) for at in tally.first)


def _report_across(weight: Weight, counts: Scan, pattern: NMPattern | None) -> Across:
    tally = _find_tally(counts, pattern)
    return Across(
        outputs=weight.shape[1 - weight.axis] if _is_matrix(weight) else None,
        groups=tally.groups,
        violations=tally.violations,
        first=_places(tally, weight.shape),
    )


def _report_tensor(
    weight: Weight, counts: Scan, across: Scan | None, pattern: NMPattern | None, at_most: bool, required: bool
) -> TensorReport:
    tally = _find_tally(counts, pattern)
    lenient = at_most or weight.mask is not None
    k, n = weight.shape[weight.axis], weight.size // max(1, weight.shape[weight.axis])
    return TensorReport(
        name=weight.name,
        shape=weight.shape,
        dtype=weight.dtype,
        axis=weight.axis,
        pattern=pattern,
        satisfies=tuple(t.pattern for t in counts.tallies if t.lawful),
        **{name: getattr(tally, name) for name in ("groups", "violations", "over", "under", "outside", "bad_masks")},
        short=tally.under if lenient else 0,
        first=_places(tally, weight.shape),
        partial=pattern is not None and k % pattern.m != 0,
        nonzeros=counts.nonzeros,
        negative_zeros=counts.negative_zeros,
        not_finite=counts.not_finite,
        mask_known=weight.mask is not None,
        required=required,
        alignment=alignment(k, n),
        tensor_cores=tensor_core_class(k, n, _BYTES.get(weight.dtype, 1)),
        uses=weight.uses,
        across=None if across is None else _report_across(weight, across, pattern),
    )


_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2}
