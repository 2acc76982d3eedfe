"""A browser, and pages in it that are watched: nothing on the console, no request to another host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from browser import Watch, find_chromium
from chat_page import RUNTIME

from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Open = Callable[..., "tuple[Page, Watch]"]


@pytest.fixture(scope="module")
def dense_url(dense_bundle: Path) -> Iterator[str]:
    """A server that every page may use."""
    config = ServeConfig(port=0, runtime=RUNTIME, allowed_origins=("*",), served_model_name="dense-one")
    with running_server(dense_bundle, config) as url:
        yield url


@pytest.fixture(scope="module")
def url(sparse_bundle: Path) -> Iterator[str]:
    """A server of the sparse model."""
    with running_server(sparse_bundle, ServeConfig(port=0, runtime=RUNTIME, served_model_name="sparse-one")) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium-headless-shell)")
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a page, and says at the end what should not have been: complaints, and requests to hosts that were not named."""
    opened: list[tuple[Watch, set[str]]] = []

    def go(url: str, *others: str, **context: Any) -> tuple[Page, Watch]:
        page = browser.new_context(**{"viewport": {"width": 1200, "height": 800}} | context).new_page()
        page.set_default_timeout(20_000)
        watch = Watch(page)
        opened.append((watch, {urlsplit(address).netloc for address in (url, *others)}))
        page.goto(url)
        page.locator("#starters button, .turn").first.wait_for()
        return page, watch

    yield go
    for context in browser.contexts:
        context.close()
    for watch, allowed in opened:
        # a server that ended before its page is no fault of the page, which goes on asking for its status
        assert [text for text in watch.complaints if "net::ERR_CONNECTION" not in text and "net::ERR_EMPTY" not in text] == []
        assert watch.hosts <= allowed
