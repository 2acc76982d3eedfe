"""The work of `export`: a checkpoint in any form becomes a bundle, compared with the checkpoint in torch where that can run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from maskpro_deploy.exporters import ExportConfig, Reference, export
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.models import resolve
from maskpro_deploy.system.extras import missing
from maskpro_deploy.system.files import check_free
from maskpro_deploy.system.progress import Meters

NOT_ASKED = "--no-verify"


def export_model(model: str, out: Path, config: ExportConfig, *, verify: bool, force: bool) -> Manifest:
    """Export a model with progress on stderr.

    Args:
        model: checkpoint folder, .gguf file, Hub id, or "demo".
        out: the bundle folder to make.
        config: of the export.
        verify: compare the bundle with the checkpoint in torch, if that can be done here; if not, a warning says why.
        force: replace `out` if it exists.

    Raises:
        MaskProError: see `export`.
    """
    check_free(out, force=force)
    folder = resolve(model)
    unverified = explain_unverified() if verify else NOT_ASKED
    if verify and unverified:
        click.echo(f"{'' if config.dtype == 'fp32' else f'{config.dtype} '}not verified: {unverified}", err=True)

    def open_reference() -> Reference:
        from maskpro_deploy.torch_lm import TorchLM

        return TorchLM.open(folder)

    with closing(Meters()) as meters:
        return export(
            folder,
            out,
            config,
            reference=None if unverified else open_reference,
            unverified=unverified,
            compare=verify,
            force=force,
            progress=meters,
        )


def explain_unverified() -> str:
    """Why the bundle cannot be compared with the checkpoint here; "" if it can."""
    if absent := sorted({*missing("learn"), *missing("cpu")}):
        return f"{', '.join(absent)} not installed; pip install 'maskpro-deploy[learn,cpu]'"
    return ""
