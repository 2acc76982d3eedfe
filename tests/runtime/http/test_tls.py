"""TLS with real handshakes; files that cannot be used show before a model is loaded."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from certificates import PASSWORD, Authority, Identity
from click.testing import CliRunner

from maskpro_deploy.commands.serve import command
from maskpro_deploy.errors import ConfigError, InputError
from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http import lifecycle
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server, serve
from maskpro_deploy.runtime.http.tls import Tls

CPU = RuntimeConfig(provider="cpu", threads=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Identity:
    return authority.issue("server")


def shown(url: str, trust: ssl.SSLContext) -> str:
    """The serial number of the certificate that a server shows."""
    place = urlsplit(url)
    with (
        socket.create_connection((place.hostname or "", place.port or 0), timeout=10) as plain,
        trust.wrap_socket(plain, server_hostname=place.hostname) as wrapped,
    ):
        return str((wrapped.getpeercert() or {})["serialNumber"])


def test_answers_come_over_https_and_streams_in_pieces(sparse_bundle: Path, authority: Authority, server: Identity) -> None:
    config = ServeConfig(port=0, runtime=CPU, tls=Tls(certfile=server.cert, keyfile=server.key))
    body = {"prompt": [1], "max_tokens": 5, "ignore_eos": True, "stream": True}
    with running_server(sparse_bundle, config) as url:
        assert url.startswith("https://127.0.0.1:")
        with httpx2.Client(base_url=url, verify=authority.trust()) as http:
            assert http.get("/health").json() == {"status": "ready"}
            with http.stream("POST", "/v1/completions", json=body) as response:
                assert sum(line.startswith("data: {") for line in response.iter_lines()) == 5
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx2.get(f"{url}/health")
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"http{url.removeprefix('https')}/health")


def test_clients_have_to_show_a_certificate(sparse_bundle: Path, authority: Authority, server: Identity, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").issue("stranger")
    config = ServeConfig(port=0, runtime=CPU, tls=Tls(certfile=server.both, ca_certs=authority.path))
    with running_server(sparse_bundle, config) as url:
        for client, welcome in [(authority.issue("client"), True), (None, False), (stranger, False)]:
            with httpx2.Client(base_url=url, verify=authority.trust(client)) as http:
                if welcome:
                    assert http.get("/health").status_code == 200
                else:
                    with pytest.raises(httpx2.TransportError):
                        http.get("/health")


def test_a_handshake_that_never_comes_has_an_end(sparse_bundle: Path, authority: Authority, server: Identity) -> None:
    config = ServeConfig(port=0, runtime=CPU, tls=Tls(certfile=server.both), header_timeout_s=0.3)
    with running_server(sparse_bundle, config) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname or "", place.port or 0), timeout=10) as silent:
            started = time.perf_counter()
            with suppress(ConnectionResetError):
                assert silent.recv(1) == b""
            assert 0.2 < time.perf_counter() - started < 5
        assert httpx2.get(f"{url}/health", verify=authority.trust()).status_code == 200


def test_old_protocols_are_refused(server: Identity) -> None:
    context = Tls(certfile=server.cert, keyfile=server.key).context
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def wrong(files: Identity, folder: Path, authority: Authority) -> dict[str, tuple[Callable[[], object], str]]:
    """What can be wrong with the files -> how it is asked for, and what the error says."""
    empty, odd = folder / "empty", authority.issue("odd")
    empty.write_text("nothing\n")

    def made(**given: Path | str) -> Callable[[], object]:
        return lambda: Tls(**{"certfile": files.cert, **given})  # type: ignore[arg-type]

    return {
        "no certificate file": (made(certfile=folder / "absent", keyfile=files.key), r"--ssl-certfile .*absent.*No such file"),
        "no key file": (made(keyfile=folder / "absent"), r"--ssl-keyfile .*absent.*No such file"),
        "a folder": (made(keyfile=folder), r"--ssl-keyfile .*Is a directory"),
        "no authorities": (made(keyfile=files.key, ca_certs=folder / "absent"), r"--ssl-ca-certs .*No such file"),
        "not a certificate": (made(certfile=empty, keyfile=files.key), r"--ssl-certfile .*empty holds no certificate"),
        "not a key": (made(keyfile=empty), r"--ssl-keyfile .*empty holds no private key"),
        "no key with it": (made(), r"--ssl-certfile .* holds no private key.*--ssl-keyfile"),
        "not authorities": (made(keyfile=files.key, ca_certs=empty), r"--ssl-ca-certs .*empty holds no certificate"),
        "another's key": (made(keyfile=odd.key), "do not belong together"),
        "no password": (made(keyfile=files.encrypted_key), "is encrypted.\nGive its password in MASKPRO_SSL_KEYFILE_PASSWORD"),
        "a wrong password": (made(keyfile=files.encrypted_key, password="x"), "holds another password"),
    }


def test_whatever_is_wrong_with_the_files_is_said_plainly(authority: Authority, server: Identity, tmp_path: Path) -> None:
    for case, (make, message) in wrong(server, tmp_path, authority).items():
        with pytest.raises(InputError, match=message) as caught:
            make()
        assert len(str(caught.value).splitlines()) <= 2, case
    assert Tls(certfile=server.cert, keyfile=server.encrypted_key, password=PASSWORD)
    assert PASSWORD not in repr(Tls(certfile=server.cert, keyfile=server.encrypted_key, password=PASSWORD))


def test_files_that_need_the_certificate_are_refused_without_it(server: Identity) -> None:
    assert Tls.of(None, None, "a password", None) is None
    for flag, keyfile, ca_certs in [("--ssl-keyfile", server.key, None), ("--ssl-ca-certs", None, server.cert)]:
        with pytest.raises(ConfigError, match=f"{flag} needs .*--ssl-certfile"):
            Tls.of(None, keyfile, None, ca_certs)


def test_the_command_refuses_before_the_model_is_loaded(
    sparse_bundle: Path, server: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "load", lambda *_: pytest.fail("loaded"))
    arguments = [
        str(sparse_bundle),
        "--port",
        "0",
        "--ssl-certfile",
        str(server.cert),
        "--ssl-keyfile",
        str(server.encrypted_key),
    ]
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2
    assert "is encrypted" in str(result.exception)
    monkeypatch.setattr(lifecycle, "serve", lambda bundle, config, ready: config.tls is not None)
    assert CliRunner().invoke(command, arguments, env={"MASKPRO_SSL_KEYFILE_PASSWORD": PASSWORD}).exit_code == 0


def test_a_hangup_brings_the_new_certificate_and_the_new_log(
    sparse_bundle: Path, authority: Authority, server: Identity, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Certificates are renewed and logs rotated while the server runs; a bad new certificate leaves the old one in use."""
    path, rotated, trust = tmp_path / "log", tmp_path / "log.1", authority.trust()
    seen: dict[str, str] = {}
    renewed = authority.issue("renewed")

    def ask_until(url: str, done: Callable[[], bool]) -> None:
        for _ in range(500):
            httpx2.get(f"{url}/version", verify=trust)
            if done():
                return
            time.sleep(0.01)
        raise AssertionError

    def work(url: str) -> None:
        try:
            seen["first"] = shown(url, trust)
            ask_until(url, path.exists)
            path.rename(rotated)
            server.key.write_text("broken")
            os.kill(os.getpid(), signal.SIGHUP)
            ask_until(url, path.exists)
            seen["after a broken key"] = shown(url, trust)
            server.key.write_bytes(renewed.key.read_bytes())
            server.cert.write_bytes(renewed.cert.read_bytes())
            os.kill(os.getpid(), signal.SIGHUP)
            ask_until(url, lambda: shown(url, trust) != seen["first"])
            seen["renewed"] = "yes"
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def meanwhile(url: str, name: str) -> None:
        threads.append(threading.Thread(target=work, args=(url,)))
        threads[0].start()

    threads: list[threading.Thread] = []
    config = ServeConfig(port=0, runtime=CPU, tls=Tls(certfile=server.cert, keyfile=server.key), request_log=str(path))
    before = signal.getsignal(signal.SIGHUP)
    assert serve(sparse_bundle, config, meanwhile)
    threads[0].join()
    assert seen["after a broken key"] == seen["first"]
    assert seen["renewed"] == "yes"
    assert any("reloading failed" in line and "--ssl-keyfile" in line for line in caplog.messages)
    assert rotated.read_text()
    assert path.read_text()
    assert signal.getsignal(signal.SIGHUP) is before
