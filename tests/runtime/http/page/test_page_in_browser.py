"""The chat page in a headless Chromium, against real servers on a tiny bundle.

Every page is watched (`conftest.py`): what its console says and any request to another host fail the test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import CutProxy
from chat_page import RUNTIME, SHOWN, answers, ask, expected, set_up, until
from gated_session import GatedSession
from real_socket import serving

from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.data import load_tokenizer
from maskpro_deploy.runtime import RuntimeConfig, SamplingParams, TextGenerator
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server

Open = Callable[..., Any]
KEY = "the right key"


def test_a_message_is_answered_as_other_clients_are_answered(open_page: Open, url: str) -> None:
    page, _ = open_page(url)
    assert page.title() == "sparse-one · Chat"
    assert page.inner_text("#facts").startswith("2:4 sparse, fp32 · 256 tokens of context · maskpro-deploy ")
    set_up(page, max_tokens=12, temperature=0.7, top_p=0.9, seed=3, system="Be brief.")
    ask(page, "hello")
    settings: dict[str, Any] = {"max_tokens": 12, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    first = expected(url, [("system", "Be brief."), ("user", "hello")], **settings)
    assert answers(page) == [first]
    stats = page.inner_text(".stats")
    assert re.search(r"first token after [\d.]+ m?s", stats)
    assert "12 tokens" in stats
    assert "cut off" in stats
    ask(page, "more")  # the whole conversation is sent
    told = [("system", "Be brief."), ("user", "hello"), ("assistant", first), ("user", "more")]
    assert answers(page) == [first, expected(url, told, **settings)]


def test_tokens_stream_in_and_esc_stops_them(open_page: Open, gated: GatedSession, gated_generator: TextGenerator) -> None:
    with serving(gated_generator) as url:
        page, _ = open_page(url)
        ask(page, "hello", wait=False)
        lengths = []
        for tokens in range(1, 14):
            gated.allow(1)
            until(page, SHOWN, tokens - 1)  # the first may be held back: it ends inside a character
            lengths.append(len(page.evaluate("document.querySelector('.body').textContent")))
        assert lengths == sorted(lengths)
        assert len(set(lengths)) >= 4
        assert re.search(r"^[\d.,]+ tokens/s$", page.inner_text(".stats"), flags=re.M)
        until(page, "document.querySelector('#running').textContent === '1'")
        assert page.get_attribute("article", "aria-busy") == "true"
        page.keyboard.press("Escape")
        page.locator("#send").wait_for()
        gated.open()
        until(page, "document.querySelector('#running').textContent === '0'")
        assert gated_generator.load.running == 0  # stopped on the server too
        assert "stopped" in page.inner_text(".stats")
        assert answers(page)[0]
        assert page.get_attribute("article", "aria-busy") is None
        assert page.evaluate("document.activeElement.id") == "message"


def test_retry_new_chat_undo_and_reload(open_page: Open, url: str) -> None:
    page, _ = open_page(url)
    set_up(page, max_tokens=8)
    ask(page, "hello")
    (first,) = answers(page)
    set_up(page, temperature=0)
    page.click("text=Retry")
    until(page, "before => JSON.parse(sessionStorage['maskpro-chat']).turns[0].answers[0]?.text !== before", first)
    page.locator("#send").wait_for()
    (second,) = answers(page)
    assert second == expected(url, [("user", "hello")], max_tokens=8, temperature=0)
    page.reload()
    page.locator(".answer .stats b").first.wait_for()
    assert page.input_value("#max_tokens") == "8"
    assert answers(page) == [second]
    page.click("#new")
    page.locator("#welcome").wait_for()
    assert answers(page) == []
    page.click("text=Undo")
    page.locator(".answer").wait_for()
    assert answers(page) == [second]


def test_the_key_is_asked_for_and_kept_in_the_tab_only(open_page: Open, sparse_bundle: Path) -> None:
    with running_server(sparse_bundle, ServeConfig(port=0, runtime=RUNTIME, api_key=KEY)) as url:
        page, watch = open_page(url)
        set_up(page, max_tokens=4)
        ask(page, "hello", wait=False)
        for key, words in (("wrong", "answers only with a key"), (KEY, "does not take this key")):
            page.locator("#key-dialog[open]").wait_for()
            until(page, "words => document.querySelector('#key-text').innerText.includes(words)", words)
            assert page.evaluate("document.activeElement.id") == "key"
            page.fill("#key", key)
            page.keyboard.press("Enter")
        page.locator("#send").wait_for()
        watch.expect("401")
        assert answers(page)[0]
        assert KEY in page.evaluate("JSON.stringify(sessionStorage)")
        assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
        assert KEY not in page.content()
        with page.expect_download() as download:
            page.click("#export")
        assert KEY not in Path(download.value.path()).read_text()
        page.click("#settings-button")
        page.click("#forget")
        assert KEY not in page.evaluate("JSON.stringify(sessionStorage)")
        ask(page, "again", wait=False)
        page.locator("#key-dialog[open]").wait_for()
        page.keyboard.press("Escape")
        page.locator("#send").wait_for()
        assert "asks for an API key" in page.inner_text(".turn:last-child .failure")
        watch.expect("401")


def test_the_conversation_is_exported(open_page: Open, url: str) -> None:
    page, _ = open_page(url)
    set_up(page, max_tokens=5, seed=1, system="Be brief.")
    ask(page, "hello")
    with page.expect_download() as download:
        page.click("#export")
    assert re.fullmatch(r"chat-[\dT-]+\.json", download.value.suggested_filename)
    held = json.loads(Path(download.value.path()).read_text())
    assert held["system"] == "Be brief."
    assert held["parameters"] == {"max_tokens": 5, "seed": 1}
    assert held["servers"][0]["model"] == "sparse-one"
    (turn,) = held["turns"]
    assert turn["text"] == "hello"
    assert turn["answers"][0]["text"] == answers(page)[0]
    assert turn["answers"][0]["stats"]["tokens"] == 5


def test_what_went_wrong_is_said_in_plain_words(
    open_page: Open, gated: GatedSession, gated_generator: TextGenerator
) -> None:  # two run, two wait, no more
    with serving(gated_generator) as url:
        page, watch = open_page(url)
        set_up(page, max_tokens=9999)
        ask(page, "hello")
        assert "does not fit into the model's context (256 tokens)" in page.inner_text(".failure")
        watch.expect("400")
        set_up(page, max_tokens=4)
        busy = gated_generator.submit([[5]] * 4, SamplingParams(max_tokens=50), lambda event: None)
        page.click("text=Retry")
        until(page, "document.querySelector('.failure').innerText.includes('busy')")
        assert re.search(r"The server is busy. It may have room in \d+ s.", page.inner_text(".failure"))
        watch.expect("503")
        until(page, "document.querySelector('#waiting').textContent === '2'")
        gated_generator.abort(busy)
        gated.open()
        until(page, "document.querySelector('#running').textContent === '0'")
        page.click("text=Retry")
        until(page, "JSON.parse(sessionStorage['maskpro-chat']).turns[0].answers[0]?.text")
        assert not page.locator(".failure:visible").count()


def test_a_connection_that_is_lost_keeps_what_arrived(
    open_page: Open, gated: GatedSession, gated_generator: TextGenerator
) -> None:
    with serving(gated_generator) as served:
        proxy = CutProxy(served)
        page, watch = open_page(proxy.url)
        ask(page, "hello", wait=False)
        gated.allow(12)
        until(page, SHOWN, 3)
        shown = page.inner_text(".body")
        proxy.cut()
        page.locator(".failure").wait_for()
        assert re.match(r"The connection was lost after \d+ tokens?\. What arrived is shown", page.inner_text(".failure"))
        assert shown[:3] in answers(page)[0]
        page.locator("#banner:has-text('cannot be reached')").wait_for()
        page.click("text=Retry")
        until(page, "document.querySelector('.failure').innerText.startsWith('The server cannot be reached')")
        page.goto("about:blank")
        watch.complaints = [text for text in watch.complaints if "net::ERR_" not in text]
        gated.open()


def test_a_model_without_a_chat_template_continues_texts(open_page: Open, session: GraphSession, sparse_bundle: Path) -> None:
    plain = TextTokenizer(load_tokenizer(sparse_bundle))
    with TextGenerator(session, plain, RuntimeConfig(max_num_seqs=2)) as generator, serving(generator) as url:
        page, _ = open_page(url)
        assert "no chat template" in page.inner_text("#hint")
        set_up(page, max_tokens=10, temperature=0)
        ask(page, "Once upon")
        whole = generator.generate(["Once upon"], SamplingParams(max_tokens=10, temperature=0))[0].text
        assert answers(page) == [whole]
        assert page.evaluate("document.querySelector('.body').textContent") == "Once upon" + whole


def test_dark_and_light(open_page: Open, url: str) -> None:
    def paper(page: Any) -> int:
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))

    light, _ = open_page(url, color_scheme="light")
    dark, _ = open_page(url, color_scheme="dark")
    assert paper(light) > 600
    assert paper(dark) < 150
    assert light.get_attribute("#theme", "aria-pressed") == "false"
    light.click("#theme")
    assert paper(light) < 150
    assert light.get_attribute("#theme", "aria-pressed") == "true"
    light.reload()
    assert paper(light) < 150
    light.click("#theme")
    assert paper(light) > 600


@pytest.mark.parametrize("width", [320, 390, 768])
def test_it_fits_a_phone(open_page: Open, url: str, width: int) -> None:
    page, _ = open_page(url, viewport={"width": width, "height": 640}, has_touch=True, is_mobile=True)

    def overflow() -> int:
        return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))

    assert overflow() <= 0
    set_up(page, max_tokens=6)
    page.fill("#message", "x" * 120)
    page.tap("#send")
    page.locator(".stats b").first.wait_for()
    assert overflow() <= 0
    page.tap("#settings-button")
    assert overflow() <= 0
    page.tap("#settings-close")
    for button in page.locator("header button, #send").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24  # WCAG 2.2: the least size of a target
        assert 0 <= box["x"] <= width - box["width"]


def test_it_can_be_used_with_the_keyboard_alone(open_page: Open, url: str) -> None:
    page, _ = open_page(url)
    assert page.evaluate("document.activeElement.id") == "message"
    order = []
    for _step in range(20):
        page.keyboard.press("Shift+Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"conversation", "settings-button", "theme", "export", "compare", "new", "skip"} <= set(order)
    page.focus("#settings-button")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "settings-close"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "settings-button"
    assert page.locator("#settings").is_hidden()
    set_up(page, max_tokens=4)
    page.fill("#message", "two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    page.keyboard.press("Enter")
    page.locator(".stats b").first.wait_for()
    page.locator("#send").wait_for()
    assert page.inner_text(".asked") == "two\nlines"
    assert answers(page)[0].strip() in page.evaluate("document.querySelector('#spoken').textContent")
    set_up(page, temperature=9)  # beyond the range: nothing is sent, and the field says so
    ask(page, "x")
    assert page.locator(".turn").count() == 1
    assert page.evaluate("document.activeElement.id") == "temperature"


def test_no_script_can_write_html(open_page: Open, url: str) -> None:
    page, watch = open_page(url)
    write = "() => { try { document.body.innerHTML = '<b>x</b>'; return 'written'; } catch { return 'refused'; } }"
    assert page.evaluate(write) == "refused"
    watch.expect("TrustedHTML")
