"""`maskpro-deploy doctor`: what this machine can do, and how to get what is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from maskpro_deploy.commands.options import PATH, json_option
from maskpro_deploy.errors import MachineError
from maskpro_deploy.system.output import emit


@click.command("doctor", short_help="Say what this machine can do, and how to get what is missing.")
@click.argument("bundle", type=PATH, required=False)
@json_option
def command(bundle: Path | None, as_json: bool) -> None:
    r"""Say what this machine can do: hardware, packages, TensorRT lanes, and which steps can run here.

    With a BUNDLE, also which of its graphs and engines can be served here, with which --provider, and what the others lack.

    Exit code: 0, or 3 if a package that everything needs is missing, too old or broken.

    \b
    Examples:
      maskpro-deploy doctor
      maskpro-deploy doctor bundle
      maskpro-deploy doctor --json
    """
    from maskpro_deploy.doctor.machine import examine, render_bundle, render_text

    diagnosis = examine()
    value, text = diagnosis.to_json(), render_text(diagnosis)
    if bundle is not None and diagnosis.healthy:
        from maskpro_deploy.doctor.bundle import examine_bundle

        abilities = examine_bundle(bundle, diagnosis)
        value["bundle"] = [dataclasses.asdict(item) for item in abilities]
        text += "\n" + render_bundle(bundle, abilities)
    emit(as_json, value, text)
    if not diagnosis.healthy:
        broken = ", ".join(b.name for b in diagnosis.base if not b.ready)
        raise MachineError(f"the base installation is broken: {broken}.\nFix it with: pip install --upgrade maskpro-deploy")
