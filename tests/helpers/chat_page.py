"""What a user does with the chat page in a browser, and what the page then holds."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import openai

from maskpro_deploy.runtime import RuntimeConfig

if TYPE_CHECKING:
    from playwright.sync_api import Page

RUNTIME = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4)
# whether so many tokens of an answer are there
SHOWN = "least => +(/(\\d+) tokens?$/m.exec(document.querySelector('.stats').innerText) ?? [0, 0])[1] >= least"


def set_up(page: Page, **fields: object) -> None:
    """Fill in the settings."""
    page.click("#settings-button")
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.click("#settings-close")


def ask(page: Page, text: str, *, wait: bool = True) -> None:
    """Send a message; `wait` for the end of the answer."""
    page.fill("#message", text)
    page.keyboard.press("Enter")
    if wait:
        page.locator("#send").wait_for()


def until(page: Page, expression: str, argument: object = None) -> None:
    """Wait until something is so in the page. Playwright's own way evaluates a string again and again, which the page refuses."""
    end = time.monotonic() + 20
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def answers(page: Page) -> list[str]:
    """The texts of all answers, as the page keeps them."""
    turns = json.loads(page.evaluate("sessionStorage.getItem('maskpro-chat')"))["turns"]
    return [answer["text"] for turn in turns for answer in turn["answers"]]


def expected(url: str, messages: list[tuple[str, str]], **settings: Any) -> str:
    """What a server answers to messages, as another client gets it."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        told: Any = [{"role": role, "content": content} for role, content in messages]
        whole = client.chat.completions.create(model=client.models.list().data[0].id, messages=told, **settings)
    return whole.choices[0].message.content or ""
