"""What `masks info`, `diff` and `apply` print: the facts of `runs.masks` as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskpro_deploy.system.output import table


def render_description(facts: Mapping[str, Any]) -> str:
    """A mask file: its figures, then its layers by kind."""
    rows = [
        ("pattern", facts["sparsity"]),
        ("layers", facts["layers"]),
        ("weights covered", f"{facts['weights']:,}"),
        ("size", f"{facts['bytes']:,} bytes, {facts['bits_per_weight']:.2f} bits a weight"),
        ("masks, SHA-256", facts["masks_sha256"]),
        ("made for weights with SHA-256", facts["dense_sha256"] or "not said"),
        ("layers that break the pattern", ", ".join(facts["not_strict"]) or "none"),
    ]
    kinds = [(kind, counts["layers"], f"{counts['weights']:,}") for kind, counts in facts["kinds"].items()]
    return f"{table(rows)}\n\n{table(kinds, ('kind', 'layers', 'weights'))}"


def render_comparison(facts: Mapping[str, Any], first: Path, second: Path) -> str:
    """Two mask files: the share of groups that differ, and what only one of them has."""
    shares = [*facts["groups_changed_by_kind"].items(), ("all", facts["groups_changed"])]
    lines = [table([(kind, f"{100 * share:.2f} %") for kind, share in shares], ("kind", "changed"))]
    only = {first: facts["only_in_first"], second: facts["only_in_second"]}
    lines += [f"{len(names)} layers are only in {where}" for where, names in only.items() if names]
    if facts["same_dense_weights"] is False:
        lines.append("the two were made for different dense weights")
    return "\n".join(lines)


def render_applied(facts: Mapping[str, Any]) -> str:
    """A sparse checkpoint that was made from masks."""
    return f"{facts['layers']} layers with {facts['sparsity']} masks, {facts['weights']:,} weights\nwritten to {facts['out']}"
