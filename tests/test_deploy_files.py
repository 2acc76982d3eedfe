"""What `deploy/` says, against the command and the server: options, routes, ports, times and users are those that there are."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click import Context

from maskpro_deploy.cli import cli
from maskpro_deploy.commands.serve import command
from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server
from maskpro_deploy.runtime.http.routes import GeneratorSlot
from maskpro_deploy.runtime.http.server import create_app
from maskpro_deploy.runtime.http.tls import PASSWORD_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
CONTAINERFILES = ("Containerfile", "Containerfile.gpu")
LONGEST_CLOSE_S = 10  # for connections, once all answers are out


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a Containerfile."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """Those of an exec form."""
        words = json.loads(self.value)
        assert isinstance(words, list)
        return words


def read_container(name: str) -> list[list[Instruction]]:
    """The instructions of each stage."""
    lines = [line for line in (DEPLOY / name).read_text().splitlines() if line.strip() and not line.startswith("#")]
    stages: list[list[Instruction]] = []
    for line in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        kind, _, value = line.partition(" ")
        if kind == "FROM":
            stages.append([])
        stages[-1].append(Instruction(kind, value.strip()))
    return stages


def the(stage: list[Instruction], name: str) -> Instruction:
    (found,) = (item for item in stage if item.name == name)
    return found


def parse_serve(words: Sequence[str]) -> Context:
    """What the command makes of the words behind `serve`; it fails for an option that it does not have."""
    return command.make_context("serve", list(words))


def read_unit() -> dict[str, dict[str, list[str]]]:
    """The unit's sections; a key that comes several times has several values."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "maskpro-deploy.service").read_text())
    sections: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(match[1], {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


def read_kubernetes() -> tuple[dict[str, Any], dict[str, Any]]:
    """The Deployment and the Service."""
    yaml = pytest.importorskip("yaml")
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    return deployment, service


@pytest.fixture(scope="module")
def routes() -> set[str]:
    """The paths of the real server."""
    return {route.path for route in create_app(GeneratorSlot("any")).routes}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_an_image_is_built_in_stages_and_runs_as_nobody(name: str) -> None:
    build, final = read_container(name)
    for stage in (build, final):
        image = the(stage, "FROM").value.split()[0]
        assert re.fullmatch(r"docker\.io/library/python:\d+\.\d+-[\w-]+", image)  # by a tag that stays what it is
    assert the(build, "FROM").value.endswith(" AS build")
    assert int(the(final, "USER").value.split(":")[0]) > 1000
    assert not [item for item in final if item.name == "RUN"]  # no compiler, no pip cache, nothing that root did
    assert the(final, "STOPSIGNAL").value == "SIGTERM"
    entry = the(final, "ENTRYPOINT").words  # exec form: the signal goes to the server, and to no shell
    assert entry == ["maskpro-deploy", "serve"]
    context = parse_serve(the(final, "CMD").words)
    assert context.params["host"] == "0.0.0.0"
    assert str(context.params["port"]) == the(final, "EXPOSE").value


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_what_an_image_copies_and_installs_is_there(name: str) -> None:
    build, final = read_container(name)
    copied = [path for item in build if item.name == "COPY" for path in item.value.split()[:-1]]
    assert {"maskpro_deploy", "exporters", "runtime", "pyproject.toml"} <= set(copied)
    allowed = {line[1:] for line in (DEPLOY / f"{name}.containerignore").read_text().splitlines() if line.startswith("!")}
    for path in copied:
        assert (ROOT / path).exists(), path
        assert path in allowed, path
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (install,) = (item.value for item in build if item.name == "RUN" and "--constraint" in item.value)
    extras = re.search(r"\.whl\)\[([\w,-]+)\]", install)
    assert extras
    assert {"serve", "gpu" if name.endswith("gpu") else "cpu"} == set(extras[1].split(","))
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    made = re.findall(r"-m venv (\S+)", " ".join(item.value for item in build))
    assert the(final, "COPY").value == f"--from=build {made[-1]} {made[-1]}"
    assert any(item.value.startswith(f"PATH={made[-1]}/bin:") for item in final if item.name == "ENV")


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_the_health_check_tells_a_live_server_from_none(name: str, sparse_bundle: Path) -> None:
    """The very command, at another port."""
    final = read_container(name)[-1]
    options, _, words = the(final, "HEALTHCHECK").value.partition("CMD ")
    python, flag, code = json.loads(words)
    assert (python, flag) == ("python", "-c")
    assert "--start-period" in options
    address = f"http://127.0.0.1:{the(final, 'EXPOSE').value}"
    assert address in code
    with running_server(sparse_bundle, ServeConfig(port=0, runtime=RuntimeConfig(provider="cpu", threads=1))) as url:
        check = [sys.executable, flag, code.replace(address, url)]
        assert subprocess.run(check, capture_output=True, timeout=60, check=False).returncode == 0
    assert subprocess.run(check, capture_output=True, timeout=60, check=False).returncode == 1


def test_the_unit_starts_the_command_and_waits_for_its_end() -> None:
    unit = read_unit()
    service = unit["Service"]
    start = shlex.split(service["ExecStart"][0])
    assert Path(start[0]).name == "maskpro-deploy"
    assert start[1] in cli.list_commands(Context(cli))
    params = parse_serve(start[2:]).params
    assert service["KillSignal"] == ["SIGTERM"]
    stop_s = float(service["TimeoutStopSec"][0])
    assert params["shutdown_timeout_s"] + LONGEST_CLOSE_S <= stop_s <= params["shutdown_timeout_s"] + 60
    assert service["Restart"] == ["on-failure"]
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert Path(params["request_log"]).parent.name == service["LogsDirectory"][0]
    hardening = ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces")
    assert {key: service[key] for key in hardening} == {key: ["yes"] for key in hardening}
    assert service["ProtectSystem"] == ["strict"]


def test_secrets_come_from_a_file_and_by_the_names_that_are_read() -> None:
    text = (DEPLOY / "maskpro-deploy.service").read_text()
    named = set(re.findall(r"MASKPRO_[A-Z_]+", text + (DEPLOY / "kubernetes.yaml").read_text()))
    read = {str(option.envvar) for option in command.params if option.envvar} | {PASSWORD_VARIABLE}
    assert named == {"MASKPRO_API_KEY", PASSWORD_VARIABLE}
    assert named <= read
    assert read_unit()["Service"]["EnvironmentFile"]
    for file in DEPLOY.iterdir():
        assert "--api-key " not in file.read_text(), file


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """All of it but the path of the installation, which is not here."""
    text = (DEPLOY / "maskpro-deploy.service").read_text()
    unit = tmp_path / "maskpro-deploy.service"
    unit.write_text(text.replace("/opt/maskpro/bin/maskpro-deploy serve", f"{sys.executable} -m maskpro_deploy serve"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])
    unit.write_text(unit.read_text().replace("Restart=on-failure", "Restart=whenever"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert "restart" in done.stderr  # it does look


def test_probes_and_ports_of_kubernetes_are_the_servers(routes: set[str]) -> None:
    deployment, service = read_kubernetes()
    pod = deployment["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    params = parse_serve(server["args"]).params
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert ports == {"http": params["port"]}
    probes = {name: server[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert all(probe["port"] in ports and probe["path"] in routes for probe in probes.values())
    assert (probes["startup"]["path"], probes["readiness"]["path"], probes["liveness"]["path"]) == ("/health", "/health", "/live")
    assert "lifecycle" not in server
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert service["spec"]["ports"][0]["targetPort"] in ports
    notes = deployment["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/path"] in routes
    assert int(notes["prometheus.io/port"]) == params["port"]
    grace_s = pod["terminationGracePeriodSeconds"]
    assert params["shutdown_timeout_s"] + LONGEST_CLOSE_S <= grace_s <= params["shutdown_timeout_s"] + 60


def test_the_pod_runs_as_the_images_user_with_a_read_only_root() -> None:
    pod = read_kubernetes()[0]["spec"]["template"]["spec"]
    user, group = the(read_container("Containerfile")[-1], "USER").value.split(":")
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (int(user), int(group))
    assert pod["securityContext"]["runAsNonRoot"]
    (server,) = pod["containers"]
    assert server["securityContext"]["readOnlyRootFilesystem"]
    assert server["securityContext"]["allowPrivilegeEscalation"] is False
    mounted = {mount["mountPath"]: mount.get("readOnly", False) for mount in server["volumeMounts"]}
    assert mounted == {server["args"][0]: True, "/tmp": False}
