"""`maskpro-deploy doctor`: what this machine can do, or what a running server is like, and what to do about the rest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from maskpro_deploy.commands.options import DURATION, PATH, json_option, refuse_given
from maskpro_deploy.errors import CheckFailed, MachineError
from maskpro_deploy.system.output import emit

_OF_SERVERS = ("api_key", "model", "ca_certs", "timeout_s")


@click.command("doctor", short_help="Say what this machine can do, or how a running server is.")
@click.argument("target", required=False, metavar="[BUNDLE|URL]")
@click.option("--api-key", envvar="MASKPRO_API_KEY", help="Key for the server. Better set MASKPRO_API_KEY: others see options.")
@click.option("--model", help="Model to ask the server for; by default the first one that it names.")
@click.option("--ca-certs", type=PATH, help="Trust the authorities in this file instead of the system's.")
@click.option("--timeout", "timeout_s", type=DURATION, default="30s", show_default=True, help="Longest wait for the server.")
@json_option
@click.pass_context
def command(
    context: click.Context, target: str | None, api_key: str | None, model: str | None, ca_certs: Path | None, timeout_s: float,
    as_json: bool,
) -> None:  # fmt: skip
    r"""Say what this machine can do: hardware, packages, TensorRT lanes, and which steps can run here.

    With a BUNDLE, also which of its graphs and engines can be served here, with which --provider, and what the others lack.
    With a URL, instead: whether the server there can be reached, is ready, takes the key, answers, and streams piece by piece; of
    any server with OpenAI's routes, as far as it says.

    Exit code: 0; 3 if a package that everything needs is missing, too old or broken; 1 if something is wrong with the server.

    \b
    Examples:
      maskpro-deploy doctor
      maskpro-deploy doctor bundle
      maskpro-deploy doctor https://models.example.org/v1
      maskpro-deploy doctor --json
    """
    if target is not None and "://" in target:
        _examine_server(target, api_key, model, ca_certs, timeout_s, as_json)
        return
    refuse_given(context, _OF_SERVERS, "is for a server: give its URL")
    _examine_machine(None if target is None else Path(target), as_json)


def _examine_server(
    url: str, api_key: str | None, model: str | None, ca_certs: Path | None, timeout_s: float, as_json: bool
) -> None:
    from maskpro_deploy.doctor.http_client import HttpClient
    from maskpro_deploy.doctor.server import examine_server, render_checks

    checks = examine_server(HttpClient(url, key=api_key, ca_certs=ca_certs, timeout_s=timeout_s), model)
    bad = [check.name for check in checks if check.good is False]
    value = {"url": url, "healthy": not bad, "checks": [dataclasses.asdict(check) for check in checks]}
    emit(as_json, value, render_checks(url, checks))
    if bad:
        raise CheckFailed(f"something is wrong with {url}: {', '.join(bad)}.")


def _examine_machine(bundle: Path | None, as_json: bool) -> None:
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
