"""Keys of several clients: read from a file that nobody else reads, found in the same time, never shown."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from maskpro_deploy.errors import ConfigError, InputError
from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.keys import ApiKeys, read_keys
from maskpro_deploy.runtime.http.lifecycle import running_server

TEXT = "# who may\n\nann: ann's secret key\nbob-key-0123\n"


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_every_line_is_a_key_with_a_name(tmp_path: Path) -> None:
    keys = read_keys(write(tmp_path, TEXT))
    assert keys == {"ann": "ann's secret key", "line 4": "bob-key-0123"}
    asked = ApiKeys(keys)
    assert [asked.find_owner(k) for k in ("ann's secret key", " bob-key-0123 ", "ann", "")] == ["ann", "line 4", None, None]
    assert asked
    assert not ApiKeys({})
    assert "secret" not in repr(asked)


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (TEXT, 0o640, "can be read by others.*\n.*chmod 600"),
        ("# none\n", 0o600, "holds no key"),
        ("ann: short\n", 0o600, "line 1: a key has 8 characters"),
        ("ann: a long key\nann: another one\n", 0o600, "line 2: .* came before"),
        ("ann: a long key\nbob: a long key\n", 0o600, "line 2: .* came before"),
        (": a long key\n", 0o600, "line 1: the name is empty"),
    ],
)
def test_a_file_that_is_none_is_refused_without_its_keys(tmp_path: Path, text: str, mode: int, message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message) as caught:
        read_keys(write(tmp_path, text, mode))
    assert "long key" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--api-key-file .* cannot be read"):
        read_keys(tmp_path / "absent")
    path = write(tmp_path, "")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text"):
        read_keys(path)


def test_each_key_opens_the_server_and_no_other_does(tmp_path: Path, sparse_bundle: Path) -> None:
    config = ServeConfig(
        port=0, runtime=RuntimeConfig(provider="cpu", threads=1), api_key="the one key", api_key_file=write(tmp_path, TEXT)
    )
    assert "secret" not in repr(config)
    with running_server(sparse_bundle, config) as url:
        answers = [("the one key", 200), ("ann's secret key", 200), ("bob-key-0123", 200), ("line 4", 401), ("ann", 401)]
        for key, status in answers:
            assert httpx2.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == status
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        assert httpx2.get(f"{url}/health").status_code == 200
