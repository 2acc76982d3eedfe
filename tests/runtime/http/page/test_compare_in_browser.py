"""Two servers side by side on the chat page, in a headless Chromium."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_page import RUNTIME, answers, ask, expected, set_up, until

from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server

Open = Callable[..., Any]


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
        page.reload()
        page.locator("body.two .second").first.wait_for()
        assert answers(page)[:2] == own[:2]
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


COMPARED = """async (rates) => {
  const { compareSpeeds, describeSpeeds } = await import("/ui/answers.js");
  const answer = (model) => (rate) => ({ model, stats: { tokens_per_s: rate }, failure: rate < 0 ? {} : null });
  const turns = rates.map(([one, two]) => ({ answers: [answer("a")(one), ...(two === undefined ? [] : [answer("b")(two)])] }));
  const speeds = compareSpeeds(turns);
  return speeds && describeSpeeds(speeds, true).map((part) => part.textContent ?? part);
}"""


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([[3, 2]], ["a makes 1.50", "From one pair of answers, so a hint"]),
        ([[2, 3]], ["b makes 1.50", "one after the other"]),
        ([[30, 10], [20, 10], [50, 10]], ["a makes 3.00", "The middle of 3 pairs of answers, 2.00", "to 5.00"]),
        ([[10, 20], [10, 50], [9, None], [5]], ["b makes 2.86", "The middle of 2 pairs of answers, 2.00", "to 5.00"]),
        ([[9, None], [5], [-1, 4]], None),
    ],
)
def test_speeds_are_compared_over_what_both_answered(open_page: Open, url: str, rates: Any, words: list[str] | None) -> None:
    page, _ = open_page(url)
    said = page.evaluate(COMPARED, rates)
    assert (said is None) == (words is None)
    assert all(word in " ".join(said or ()) for word in words or ())
