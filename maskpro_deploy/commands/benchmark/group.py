"""`maskpro-deploy benchmark`: the group; each subcommand has its own module."""

from __future__ import annotations

import click

from maskpro_deploy.commands.benchmark import compare, kernels, latency, serve, throughput


@click.group("benchmark")
def command() -> None:
    r"""Measure latency and throughput, sparse against dense, in one run.

    Arms are timed in interleaved blocks (A B B A); each comparison comes with a 95 % interval and a verdict, and each report with
    a test of the harness against itself. Exit code 1: the run is invalid, and the reason is given.

    \b
    Example:
      maskpro-deploy benchmark latency bundle --against dense-bundle --out report
      maskpro-deploy benchmark throughput bundle --batch 1,2,4,8
      maskpro-deploy benchmark kernels bundle --tokens 1,16,128
      maskpro-deploy benchmark compare report-before report-after
    """


command.add_command(latency.command)
command.add_command(throughput.command)
command.add_command(kernels.command)
command.add_command(serve.command)
command.add_command(compare.command)
