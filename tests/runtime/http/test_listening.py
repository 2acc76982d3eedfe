"""The socket of a server is its own."""

from __future__ import annotations

import pytest

from maskpro_deploy.errors import InputError
from maskpro_deploy.runtime.http.listening import base_url, listen


def test_two_servers_never_share_a_port() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(InputError, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(InputError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)
    with pytest.raises(InputError, match="--host"):
        listen("no such host", 0)


@pytest.mark.parametrize(("host", "where"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")])
def test_the_url_is_one_that_this_machine_can_open(host: str, where: str) -> None:
    with listen(host, 0) as taken:
        assert base_url(taken, "https") == f"https://{where}:{taken.getsockname()[1]}"
