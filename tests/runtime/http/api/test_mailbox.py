"""The way from another thread to an event loop: nothing is lost or overtaken, and few wake-ups carry it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from maskpro_deploy.runtime.http.api.mailbox import Mailbox


def test_everything_arrives_in_order_on_the_loops_thread() -> None:
    async def receive() -> tuple[list[tuple[int, int]], set[int]]:
        loop, got, threads = asyncio.get_running_loop(), [], set()
        everything = asyncio.Event()

        def take(item: tuple[int, int]) -> None:
            got.append(item)
            threads.add(threading.get_ident())
            if len(got) == 4000:
                everything.set()

        posts = [Mailbox.of(loop).sender(loop, take) for _ in range(2)]
        senders = [threading.Thread(target=lambda i=i: [posts[i]((i, k)) for k in range(2000)]) for i in range(2)]
        for sender in senders:
            sender.start()
        await asyncio.wait_for(everything.wait(), 20)
        for sender in senders:
            sender.join()
        return got, threads

    got, threads = asyncio.run(receive())
    assert threads == {threading.get_ident()}
    for i in range(2):
        assert [k for sender, k in got if sender == i] == list(range(2000))


def test_what_is_posted_together_wakes_the_loop_once() -> None:
    async def receive() -> tuple[list[str], int]:
        loop, got, wakes = asyncio.get_running_loop(), [], 0
        wake = loop.call_soon_threadsafe

        def count(*arguments: object) -> asyncio.Handle:
            nonlocal wakes
            wakes += 1
            return wake(*arguments)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = count  # type: ignore[assignment, method-assign]
        posts = [Mailbox.of(loop).sender(loop, got.append) for _ in range(16)]
        for name, post in enumerate(posts):
            post(str(name))
        await asyncio.sleep(0.01)
        posts[0]("later")
        await asyncio.sleep(0.01)
        return got, wakes

    got, wakes = asyncio.run(receive())
    assert got == [*(str(i) for i in range(16)), "later"]
    assert wakes == 2


def test_a_closed_loop_is_an_error_for_everyone_who_posts() -> None:
    async def make() -> object:
        loop = asyncio.get_running_loop()
        return Mailbox.of(loop).sender(loop, print)

    post = asyncio.run(make())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            post("nobody is there")  # type: ignore[operator]
