"""The chat page in a headless Chromium, against real servers on a tiny bundle.

Every page is watched (`conftest.py`): what its console says and any request to another host fail the test.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from browser import CutProxy, serving
from gated_session import GatedSession

from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.data import load_tokenizer
from maskpro_deploy.runtime import RuntimeConfig, SamplingParams, TextGenerator
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server

Open = Callable[..., Any]
RUNTIME = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4)
KEY = "the right key"
LONG = "x" * 40
SHOWN = "least => +(/(\\d+) tokens?$/m.exec(document.querySelector('.stats').innerText) ?? [])[1] >= least"  # tokens of an answer


@pytest.fixture(scope="module")
def dense_url(dense_bundle: Path) -> Iterator[str]:
    config = ServeConfig(port=0, runtime=RUNTIME, allowed_origins=("*",), served_model_name="dense-one")
    with running_server(dense_bundle, config) as url:
        yield url


@pytest.fixture(scope="module")
def url(sparse_bundle: Path) -> Iterator[str]:
    with running_server(sparse_bundle, ServeConfig(port=0, runtime=RUNTIME, served_model_name="sparse-one")) as served:
        yield served


def set_up(page: Any, **fields: object) -> None:
    """Fill in the settings."""
    page.click("#settings-button")
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.click("#settings-close")


def ask(page: Any, text: str, *, wait: bool = True) -> None:
    """Send a message; `wait` for the end of the answer."""
    page.fill("#message", text)
    page.keyboard.press("Enter")
    if wait:
        page.locator("#send").wait_for()


def until(page: Any, expression: str, argument: object = None) -> None:
    """Wait until something is so in the page. Playwright's own way evaluates a string again and again, which the page refuses."""
    end = time.monotonic() + 20
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def answers(page: Any) -> list[str]:
    """The texts of all answers, as the page keeps them."""
    turns = json.loads(page.evaluate("sessionStorage.getItem('maskpro-chat')"))["turns"]
    return [answer["text"] for turn in turns for answer in turn["answers"]]


def expected(url: str, messages: list[tuple[str, str]], **settings: Any) -> str:
    """What a server answers to messages, as another client gets it."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        told: Any = [{"role": role, "content": content} for role, content in messages]
        whole = client.chat.completions.create(model=client.models.list().data[0].id, messages=told, **settings)
    return whole.choices[0].message.content or ""


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
    assert re.search(r"[\d.,]+ tokens/s", stats)
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
        for total in (6, 14, 22):  # a few tokens may be held back: they end inside a character
            gated.allow(6 if not lengths else 8)
            until(page, SHOWN, total - 4)
            lengths.append(len(page.evaluate("document.querySelector('.body').textContent")))
        assert lengths == sorted(set(lengths))
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


def test_two_servers_answer_side_by_side(open_page: Open, sparse_bundle: Path, dense_url: str) -> None:
    config = ServeConfig(port=0, runtime=RUNTIME, served_model_name="sparse-one", compare_url=dense_url)
    with running_server(sparse_bundle, config) as url:
        page, _ = open_page(url, dense_url)
        page.locator("body.two").wait_for()
        until(page, "document.querySelector('#server').innerText.includes('dense-one')")
        set_up(page, max_tokens=20, temperature=0)
        ask(page, "hello")
        assert answers(page) == [expected(each, [("user", "hello")], max_tokens=20, temperature=0) for each in (url, dense_url)]
        assert page.locator(".name").all_inner_texts() == ["sparse-one\n2:4 sparse, fp32", "dense-one\ndense, fp32"]
        assert re.search(r"one makes [\d.]+× the tokens per second of .*-one\.\nFrom one pair", page.inner_text("#verdict"))
        boxes = [box.bounding_box() for box in page.locator(".answer").all()]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
        page.click("#compare")
        page.check("#in-turn")
        page.click("#compare-dialog .strong")
        ask(page, "more")  # each goes on with its own conversation
        own = answers(page)
        for each, first, second in ((url, own[0], own[2]), (dense_url, own[1], own[3])):
            told = [("user", "hello"), ("assistant", first), ("user", "more")]
            assert second == expected(each, told, max_tokens=20, temperature=0)
        assert "2 pairs" in page.inner_text("#verdict")
        assert "one after the other" in page.inner_text("#verdict")
        page.reload()
        page.locator("body.two #verdict small").wait_for()
        page.click("#compare")
        page.click("#compare-off")
        assert not page.locator("body.two").count()


def test_a_second_server_can_be_typed_in_and_then_the_page_may_talk_to_it_only(open_page: Open, url: str, dense_url: str) -> None:
    page, watch = open_page(url, dense_url)
    page.click("#compare")
    assert f"--allowed-origins {url}" in page.inner_text("#compare-dialog")
    page.fill("#compare-url", "not an address")
    page.click("#compare-dialog .strong")
    assert "such as http://" in page.inner_text("#compare-error")
    page.fill("#compare-url", f"{dense_url}/v1/")
    page.click("#compare-dialog .strong")
    page.locator("body.two").wait_for()
    set_up(page, max_tokens=4)
    ask(page, "hello")
    assert len(answers(page)) == 2
    refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
    assert refused == "refused"
    watch.expect("Content Security Policy")
    watch.complaints = [text for text in watch.complaints if "violates the document" not in text]


def test_a_link_that_names_a_second_server_asks_first(open_page: Open, url: str, dense_url: str) -> None:
    page, _ = open_page(f"{url}/?compare={dense_url}")  # a request to the second server would fail this test
    page.locator("#compare-dialog[open]").wait_for()
    assert dense_url in page.inner_text("#compare-text")
    page.click("#compare-dialog [data-close]")
    set_up(page, max_tokens=4)
    ask(page, "hello")
    assert len(answers(page)) == 1


def test_a_server_that_does_not_allow_the_page_is_explained(open_page: Open, url: str, sparse_bundle: Path) -> None:
    with running_server(sparse_bundle, ServeConfig(port=0, runtime=RUNTIME)) as closed:
        page, watch = open_page(f"{url}/?compare={closed}", closed)
        page.click("#compare-dialog .strong")
        set_up(page, max_tokens=4)
        ask(page, "hello")
        assert f"--allowed-origins {url}" in page.inner_text(".second .failure")
        first, second = answers(page)
        assert first
        assert not second
        page.goto("about:blank")
        watch.complaints = [text for text in watch.complaints if "CORS" not in text and "ERR_FAILED" not in text]


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
    page.fill("#message", LONG * 3)
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


RENDER = """async (text) => {
  const { Markdown } = await import("/ui/markdown.js");
  const target = document.createElement("div");
  const shown = new Markdown(target);
  for (const part of Array.isArray(text) ? text : [text]) shown.update(part);
  return new XMLSerializer().serializeToString(target).replaceAll(' xmlns="http://www.w3.org/1999/xhtml"', "").slice(5, -6);
}"""


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one<br />two</p><p>three</p>"),
        ("**bold** *it* `a*b*` ~~no~~ 2 * 3 * 4 snake_case_name", "<p><strong>bold</strong> <em>it</em> <code>a*b*</code> <s>no</s> 2 * 3 * 4 snake_case_name</p>"),
        ("# A\n### B", "<h3>A</h3><h5>B</h5>"),
        ("- a\n- b\n  - c\n\n1. x\n2. y", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol start=\"1\"><li>x</li><li>y</li></ol>"),
        ("> a\n> b", "<blockquote><p>a<br />b</p></blockquote>"),
        ("[x](https://a.example/b) [y](javascript:alert) ![z](http://a.example/i.png)",
         '<p><a href="https://a.example/b" target="_blank" rel="noopener noreferrer nofollow">x</a> [y](javascript:alert) '
         '<a href="http://a.example/i.png" target="_blank" rel="noopener noreferrer nofollow">z</a></p>'),
        ("<img src=x onerror=alert(1)><b>", "<p>&lt;img src=x onerror=alert(1)&gt;&lt;b&gt;</p>"),
        ("| a | b |\n|---|---|\n| 1 | **2** |", '<div class="scroll" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><strong>2</strong></td></tr></tbody></table></div>'),
        (r"\*a\*", "<p>*a*</p>"),
    ],
)  # fmt: skip
def test_markdown_becomes_elements_and_text_stays_text(open_page: Open, url: str, text: str, html: str) -> None:
    page, _ = open_page(url)
    assert page.evaluate(RENDER, text) == html


def test_markdown_that_grows_looks_as_if_it_came_at_once(open_page: Open, url: str) -> None:
    text = "Some *text*:\n\n- one\n- two\n  more\n\n```py\nif a < b:\n\n    print('x')\n```\n> quoted\n\n| a | b |\n|--|--|\n| 1 | 2 |\n\n1. x\n\n   y\n2. z\n***\nend"
    page, _ = open_page(url)
    whole = page.evaluate(RENDER, text)
    assert page.evaluate(RENDER, [text[:end] for end in range(1, len(text) + 1)]) == whole
    assert "<pre" in whole
    assert "if a &lt; b:\n\n    print('x')</code>" in whole
    assert "<li>x<p>y</p></li><li>z</li></ol><hr /><p>end</p>" in whole


def test_long_and_hostile_markdown_takes_no_time(open_page: Open, url: str) -> None:
    page, _ = open_page(url)
    for text in (
        "> " * 3000,
        "*" * 20_000,
        "`a``" * 5000,
        "[" * 10_000,
        "**a " * 5000,
        "_a*b" * 5000,
        "- " * 5000,
        "|" * 9000 + "\n|-|",
    ):
        spent = page.evaluate(
            f"async (text) => {{ const t = performance.now(); await ({RENDER})(text); return performance.now() - t; }}", text
        )
        assert spent < 2000, text[:10]


def test_no_script_can_write_html(open_page: Open, url: str) -> None:
    page, watch = open_page(url)
    assert (
        page.evaluate("() => { try { document.body.innerHTML = '<b>x</b>'; return 'written'; } catch { return 'refused'; } }")
        == "refused"
    )
    watch.expect("TrustedHTML")
