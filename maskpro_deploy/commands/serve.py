"""`maskpro-deploy serve`: a bundle over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from maskpro_deploy.backends.providers import runs_in_onnxruntime
from maskpro_deploy.commands.options import DURATION, PATH, run_options
from maskpro_deploy.errors import Interrupted
from maskpro_deploy.system.extras import require

# the options that are fields of `ServeConfig`; the others are fields of `RuntimeConfig`
_SERVER = (
    "host", "port", "api_key", "served_model_name", "shutdown_timeout_s", "allowed_origins", "header_timeout_s", "body_timeout_s",
    "max_connections", "api_key_file", "request_log", "max_body_bytes", "max_tokens_limit", "default_max_tokens",
    "model_aliases", "generation_config", "docs", "otlp_traces_endpoint", "ui", "compare_url",
)  # fmt: skip


@click.command("serve")
@click.argument("bundle", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all of this machine's.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port to listen on; 0 takes a free one.")
@run_options("What runs the model.")
@click.option("--spin", is_flag=True, help="Let waiting threads spin: faster on an idle machine, far slower on a shared one.")
@click.option("--max-num-seqs", type=int, default=16, show_default=True, help="Answers generated at the same time.")
@click.option(
    "--max-num-queued-reqs", type=int, default=64, show_default=True, help="Further answers that may wait; more get 503."
)
@click.option("--max-model-len", type=int, help="Longest prompt and answer together, in tokens; the model's own by default.")
@click.option(
    "--max-cache-tokens", type=int, help="Tokens that the key/value cache may hold; by default an eighth of the memory."
)
@click.option(
    "--prefix-caching/--no-prefix-caching", default=True, show_default=True,
    help="Keep what was read, within --max-cache-tokens, for prompts that begin alike.",
)  # fmt: skip
@click.option(
    "--api-key", envvar="MASKPRO_API_KEY", help="Clients have to send it. Better set MASKPRO_API_KEY: others see options."
)
@click.option("--api-key-file", type=PATH, help="File of keys, one a line: NAME: KEY. Logs call clients by these names.")
@click.option(
    "--request-log", metavar="FILE", help="Append a line of JSON for every request, without its texts; - for stderr."
)  # fmt: skip
@click.option(
    "--served-model-name", "served_model_names", multiple=True,
    help="What clients call the model; the bundle's own name by default (repeatable: answers have the first).",
)  # fmt: skip
@click.option(
    "--generation-config", type=click.Choice(["auto", "none"]), default="auto", show_default=True,
    help="Whether the bundle's generation_config.json has the defaults of requests that do not say.",
)  # fmt: skip
@click.option("--chat-template", type=PATH, help="File with a chat template in place of the bundle's own.")
@click.option("--docs/--no-docs", default=True, show_default=True, help="Serve a description of the API at /docs, /openapi.json.")
@click.option("--ssl-certfile", type=PATH, help="Serve https with this certificate (PEM); SIGHUP reads it and its key again.")
@click.option("--ssl-keyfile", type=PATH, help="Its private key; by default in the certificate's file. Password: see docs.")
@click.option("--ssl-ca-certs", type=PATH, help="Clients have to show a certificate of an authority in this file.")
@click.option("--otlp-traces-endpoint", metavar="URL", help="Send a span for every request to this OpenTelemetry collector.")
@click.option(
    "--shutdown-timeout",
    "shutdown_timeout_s",
    type=DURATION,
    default="30s",
    show_default=True,
    help="Time for running answers after a signal to stop.",
)
@click.option(
    "--queue-timeout", "queue_timeout_s", type=DURATION, default="60s", show_default=True,
    help="Time that an answer may wait for its start; then 503.",
)  # fmt: skip
@click.option("--request-timeout", "request_timeout_s", type=DURATION, help="Time that an answer may take; then 504.")
@click.option(
    "--header-timeout", "header_timeout_s", type=DURATION, default="10s", show_default=True,
    help="Time for the headers of a request to arrive.",
)  # fmt: skip
@click.option(
    "--body-timeout", "body_timeout_s", type=DURATION, default="60s", show_default=True, help="Time for its body; then 408."
)  # fmt: skip
@click.option("--max-connections", type=int, default=1024, show_default=True, help="Connections at once; more get 503.")
@click.option("--max-body-bytes", type=int, help="Longest request; by default what the context can use (3 MB for 8,192 tokens).")
@click.option("--max-tokens-limit", type=int, help="Most tokens of an answer, whatever a client asks for.")
@click.option(
    "--max-prompt-logprobs-tokens", type=int, default=4096, show_default=True,
    help="Prompt tokens of a request that asks for their log-probabilities (echo with logprobs); more get 400.",
)  # fmt: skip
@click.option("--default-max-tokens", type=int, help="Tokens of a chat's answer where the client does not say.")
@click.option(
    "--allowed-origins", multiple=True, help="Web page that may call the server from a browser (repeatable; '*' for all)."
)
@click.option("--ui/--no-ui", default=True, show_default=True, help="A chat page at /, for browsers.")
@click.option("--compare-url", metavar="URL", help="Second server that the chat page shows next to this one.")
@click.option("--check-hashes", is_flag=True, help="Read all files of the bundle and compare their SHA-256 first.")
def command(bundle: Path, **options: Any) -> None:
    """Serve BUNDLE over an OpenAI-compatible HTTP API.

    SIGTERM or Ctrl-C finishes the running answers and exits with 0; if some had to be cut off, with 130.

    \b
    Examples:
      maskpro-deploy serve bundle
      MASKPRO_API_KEY=secret maskpro-deploy serve bundle --host 0.0.0.0 --port 8080
      curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
        -d '{"prompt": "Once upon a time", "max_tokens": 32}'
    """  # noqa: D301 (click's sign for lines to keep is the backspace character itself)
    require("serve", "the server")
    if runs_in_onnxruntime(options["provider"]):
        require("cpu", "running a bundle")
    from maskpro_deploy.runtime import RuntimeConfig, ServeConfig
    from maskpro_deploy.runtime.generate.chat_template import read_template_file
    from maskpro_deploy.runtime.http.lifecycle import serve
    from maskpro_deploy.runtime.http.tls import PASSWORD_VARIABLE, Tls
    from maskpro_deploy.targets.servers import LOOPBACK

    options["served_model_name"], *aliases = options.pop("served_model_names") or (None,)
    options["model_aliases"] = tuple(aliases)
    if (template := options["chat_template"]) is not None:
        options["chat_template"] = read_template_file(template)
    certfile, keyfile, ca_certs = (options.pop(f"ssl_{name}") for name in ("certfile", "keyfile", "ca_certs"))
    tls = Tls.of(certfile, keyfile, os.environ.get(PASSWORD_VARIABLE), ca_certs)
    server = {name: options.pop(name) for name in _SERVER}
    config = ServeConfig(runtime=RuntimeConfig(**options), tls=tls, **server)
    if not config.all_keys and config.host not in LOOPBACK:
        click.echo("warning: whoever reaches this machine can use the model; set MASKPRO_API_KEY to ask for a key", err=True)
    if not serve(bundle, config, lambda url, name: click.echo(f"serving {name} at {url}/v1 (stop with Ctrl-C)", err=True)):
        click.echo("stopped before all answers were finished", err=True)
        sys.exit(Interrupted.exit_code)
