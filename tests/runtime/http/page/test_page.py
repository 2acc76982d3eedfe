"""The chat page as it is sent, without a browser: headers, tags, sizes, and what its HTML and CSS hold."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner
from real_socket import serving

from maskpro_deploy import __version__
from maskpro_deploy.commands.serve import command
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.runtime import RuntimeConfig, TextGenerator
from maskpro_deploy.runtime.http.addresses import ServerAddress
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server
from maskpro_deploy.runtime.http.page.files import INDEX, read_files
from maskpro_deploy.runtime.http.routes import GeneratorSlot

FILES = read_files()
PATHS = ["/", *(f"/ui/{name}" for name in FILES if name != INDEX)]
KEY = "a secret key"


@pytest.fixture(scope="module")
def http(sparse_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A server that asks for a key, and has a second one to compare with."""
    runtime = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4)
    log = tmp_path_factory.mktemp("log") / "requests"
    config = ServeConfig(port=0, runtime=runtime, api_key=KEY, compare_url="http://Other.example:81/v1/", request_log=str(log))
    with running_server(sparse_bundle, config) as url, httpx2.Client(base_url=url) as made:
        yield made
    assert "/ui/status" not in log.read_text()  # the page asks all the time


@pytest.mark.parametrize("path", PATHS)
def test_every_file_comes_without_a_key_and_is_asked_for_again_only_if_it_changed(http: httpx2.Client, path: str) -> None:
    whole = http.get(path)
    assert whole.status_code == 200
    assert whole.headers["Cache-Control"] == "no-cache"
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["ETag"] == whole.headers["ETag"]
    for known in (whole.headers["ETag"], f'"x", {whole.headers["ETag"]}', whole.headers["ETag"].removeprefix("W/"), "*"):
        again = http.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["Content-Security-Policy"] == whole.headers["Content-Security-Policy"]
    assert http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    assert http.post(path).status_code == 405


def test_what_is_not_a_file_of_the_page_is_not_sent(http: httpx2.Client) -> None:
    for path in ("/ui/", "/ui/routes.py", "/ui/__init__.py", "/ui/index.html", "/ui/../api/chat.py", "/index.html", "/ui"):
        assert http.get(path).status_code == 404


def test_the_page_may_only_talk_to_its_server_and_to_those_named(http: httpx2.Client) -> None:
    def connects(query: str = "") -> str:
        policy = http.get(f"/{query}").headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        return re.search(r"connect-src ([^;]*);", policy)[1]  # type: ignore[index]

    assert connects() == "'self' http://other.example:81"
    assert connects("?compare=http://a.example:9/x") == "'self' http://other.example:81 http://a.example:9"
    for bad in (
        "*",
        "http://*.example",
        "http://a;script-src *",
        "http://a%20b",
        "javascript:alert(1)",
        "http://u@a",
        "http://a%0d%0aX: y",
    ):
        assert connects(f"?compare={bad}") == "'self' http://other.example:81"
    assert "connect-src 'self';" in http.get("/ui/app.js").headers["Content-Security-Policy"]


def test_the_status_holds_what_the_page_shows_and_no_key(http: httpx2.Client) -> None:
    answer = http.get("/ui/status")
    assert answer.headers["Cache-Control"] == "no-store"
    assert KEY not in answer.text
    status = answer.json()
    assert status["sampling"]["temperature"] == {"default": 1.0, "low": 0, "high": 2}
    assert {k: status[k] for k in ("status", "weights", "version", "context", "chat", "compare_url", "running", "waiting")} == {
        "status": "ready", "weights": "2:4 sparse, fp32", "version": __version__, "context": 256, "chat": True,
        "compare_url": "http://other.example:81", "running": 0, "waiting": 0,
    }  # fmt: skip
    models = http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert status["model"] == models["data"][0]["id"]
    assert http.get("/v1/models").status_code == 401


def test_the_page_is_there_while_the_model_loads(generator: TextGenerator) -> None:
    slot = GeneratorSlot("later")
    with serving(slot) as url, httpx2.Client(base_url=url) as client:
        assert client.get("/").status_code == 200
        status = client.get("/ui/status").json()
        assert (status["status"], status["model"], status["context"], status["chat"]) == ("loading", "later", None, None)
        slot.fill(generator)
        status = client.get("/ui/status").json()
        assert (status["status"], status["context"], status["chat"]) == ("ready", 256, True)


def test_it_can_be_turned_off(generator: TextGenerator) -> None:
    with serving(generator, ServeConfig(ui=False)) as url, httpx2.Client(base_url=url) as client:
        assert {client.get(path).status_code for path in (*PATHS, "/ui/status")} == {404}
        assert client.get("/version").status_code == 200


def test_an_address_to_compare_with_is_checked_where_it_is_given() -> None:
    for bad in (
        "other:81",
        "ftp://other",
        "http://",
        "http://[::1]:80",
        "http://user:secret@other",
        "http://a b",
        "http://a/?x=1",
    ):
        with pytest.raises(ConfigError, match=r"--compare-url .* is not a server's address"):
            ServeConfig(compare_url=bad)
    with pytest.raises(ConfigError, match="--no-ui"):
        ServeConfig(compare_url="http://other:81", ui=False)
    shown = CliRunner().invoke(command, ["--help"]).output
    assert "--no-ui" in shown
    assert "--compare-url" in shown


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1:8001", "http://127.0.0.1:8001"), (" HTTPS://Some.Host/v1/ ", "https://some.host"),
        ("http://h/a/b/v1", "http://h/a/b"), ("http://h//", "http://h"), ("http://h" + "x" * 300, None), ("", None),
    ],
)  # fmt: skip
def test_addresses_are_read_one_way(text: str, address: str | None) -> None:
    read = ServerAddress.read(text)
    assert (None if read is None else str(read)) == address


def test_the_page_is_small() -> None:
    """All files together: as browsers get them, and as they are."""
    assert sum(min(len(file.body), len(gzip.compress(file.body, mtime=0))) for file in FILES.values()) < 30_000
    assert sum(len(file.body) for file in FILES.values()) < 70_000


def test_files_arrive_compressed_where_that_is_understood(http: httpx2.Client) -> None:
    plain = http.get("/ui/app.js", headers={"Accept-Encoding": "identity"})
    small = http.get("/ui/app.js", headers={"Accept-Encoding": "gzip"})
    assert small.content == plain.content == FILES["app.js"].body
    assert int(small.headers["Content-Length"]) < len(plain.content) / 2
    assert "Accept-Encoding" in small.headers["Vary"]


class Tags(HTMLParser):
    """All tags with their attributes, and for each button the text in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.buttons: list[list[str]] = []
        self._in_button = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag == "button":
            self.buttons.append([found.get("aria-label", "")])
            self._in_button = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "button":
            self._in_button = False

    def handle_data(self, data: str) -> None:
        if self._in_button:
            self.buttons[-1].append(data.strip())


def test_every_control_has_a_name_and_every_reference_an_end() -> None:
    page = Tags(FILES[INDEX].body.decode())
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    labels = {a["for"] for tag, a in page.tags if tag == "label" and "for" in a}
    fields = {a["id"] for tag, a in page.tags if tag in ("input", "textarea") and a.get("type") != "checkbox"}
    assert fields == labels
    assert len(fields) >= 8
    assert all(any(names) for names in page.buttons)
    named = {a[key] for _, a in page.tags for key in ("aria-labelledby", "aria-controls", "aria-describedby") if key in a}
    assert named | {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")} <= set(ids)
    scripts = b"".join(file.body for name, file in FILES.items() if name.endswith(".js")).decode()
    used = set(re.findall(r'\$\("([\w-]+)"\)', scripts))
    assert len(used) > 20
    assert used <= set(ids)


def test_nothing_comes_from_elsewhere_and_no_text_becomes_html() -> None:
    for name, file in FILES.items():
        text = file.body.decode().replace("http://www.w3.org/2000/svg", "").replace("http://127.0.0.1:8001", "")
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//|url\(|@import|@font-face", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), name
        assert " style=" not in text, name
        assert not re.search(r"<[^>]+ on\w+=", text), name
    referred = re.findall(r'(?:src|href)="ui/([\w.]+)"', FILES[INDEX].body.decode())
    imported = [n for f in FILES.values() for n in re.findall(r'from "\./([\w.]+)"', f.body.decode())]
    assert {*referred, *imported, INDEX} == set(FILES)


def test_text_can_be_read_in_both_themes() -> None:
    """Contrast of at least 4.5, as WCAG 2 asks of text."""
    colours = dict(re.findall(r"--([\w-]+): light-dark\(([^)]*)\)", FILES["style.css"].body.decode()))

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [*product(("ink", "soft"), ("paper", "panel", "raised")), *product(("one", "two"), ("paper", "raised"))]
    for front, back in [
        *pairs,
        ("one", "one-tint"),
        ("ink", "one-tint"),
        ("on-one", "one"),
        ("bad", "bad-tint"),
        ("soft", "line"),
    ]:
        for theme in (0, 1):
            low, high = sorted(luminance(colours[name].split(", ")[theme]) for name in (front, back))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back, theme)
