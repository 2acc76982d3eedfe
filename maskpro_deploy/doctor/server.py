"""What a running server is like from here: a list of plain answers, for any server with OpenAI's routes as far as it goes.

Each check is `yes`, `no` with what to do, or `-` where the server does not say. A server that cannot be reached has one check.
"""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any

from maskpro_deploy.doctor.http_client import HttpClient, Reply
from maskpro_deploy.errors import first_line

FAILURES = (OSError, http.client.HTTPException)  # of a request; ssl's errors are among them

_MOST_CLOCK_S = 30.0
_LEAST_CERTIFICATE_DAYS = 14
_PROMPT = "Count: one, two, three,"
_LEAST_TOKENS, _MOST_TOKENS, _MOST_STREAMS = 32, 512, 4  # streams get longer until one takes long enough to judge
_LEAST_JUDGED_S = 0.05
# a stream was held back whose pieces all come within this, so much for each, or this part of the whole
_BURST_S, _BURST_PIECE_S, _BURST_SHARE = 0.002, 5e-5, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    good: bool | None  # None if the server does not say
    detail: str = ""  # what was found
    advice: str = ""  # what to do, where it is not good


def examine_server(client: HttpClient, model: str | None = None) -> list[Check]:
    """Ask a server; `model` is what to ask for, by default the first one that it names. Takes a few short answers' time."""
    try:
        listed = client.get("/v1/models")
    except FAILURES as e:
        return [_explain_unreachable(client, e)]
    checks = [
        Check(name="reachable", good=True, detail=f"HTTP {listed.status} after {listed.seconds * 1e3:.0f} ms"),
        *_check_certificate(client, listed),
    ]
    names = _names_of(listed)
    steps: list[Callable[[], Iterable[Check]]] = [
        lambda: [_check_version(client)],
        lambda: [_check_ready(client)],
        lambda: [_check_key(client, listed)],
        lambda: [_check_model(listed, names, model), _check_limits(listed, model), _check_clock(listed)],
    ]
    if listed.status == 200 and (model or names):
        steps.append(lambda: _check_answers(client, model or names[0]))
    for step in steps:
        try:
            for check in step():
                checks.append(check)  # those before a failure stay
        except FAILURES as e:
            checks.append(Check(name="connection", good=False, detail=_say(e), advice="Ask again; see the server's log."))
    return checks


def render_checks(url: str, checks: list[Check]) -> str:
    """The checks as they are printed."""
    lines = [f"Server {url}"]
    for check in checks:
        sign = {True: "yes", False: "no", None: "-"}[check.good]
        lines.append(f"  {sign:4}{check.name}" + (f": {check.detail}" if check.detail else ""))
        if check.advice and not check.good:
            lines.append(f"      {check.advice}")
    return "\n".join(lines)


def _say(error: BaseException) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)


def _explain_unreachable(client: HttpClient, error: BaseException) -> Check:
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = "Renew the certificate, or name its authority with --ca-certs; the URL has to use a name that is in it."
        return Check(name="TLS", good=False, detail=error.verify_message, advice=advice)
    if isinstance(error, ssl.SSLError):
        advice = (
            "If the server speaks plain http, use http://; if it asks for a client's certificate, ask from where there is one."
        )
        return Check(name="TLS", good=False, detail=_say(error), advice=advice)
    if isinstance(error, TimeoutError):
        advice = "Look for a firewall in between; a server that is busy still answers /v1/models."
        return Check(name="reachable", good=False, detail="no answer within the time", advice=advice)
    if isinstance(error, http.client.HTTPException | ConnectionResetError) and not client.secure:
        advice = "If it speaks TLS, use https://; else another program may listen there."
        return Check(name="reachable", good=False, detail=f"no HTTP: {_say(error)}", advice=advice)
    return Check(name="reachable", good=False, detail=_say(error), advice="Is it running, and are host and port right?")


def _check_certificate(client: HttpClient, listed: Reply) -> list[Check]:
    if listed.peer is None:
        if _is_loopback(client.host):
            return [Check(name="TLS", good=None, detail="plain http, on this machine only")]
        return [
            Check(
                name="TLS",
                good=None,
                detail="plain http: others on the network can read keys and texts",
                advice="Use https.",
            )
        ]
    ends = str(listed.peer.get("notAfter", ""))
    days = (ssl.cert_time_to_seconds(ends) - time.time()) / 86400 if ends else 0.0
    good = days >= _LEAST_CERTIFICATE_DAYS
    return [Check(name="TLS", good=good, detail=f"valid until {ends}, {days:.0f} days", advice="Renew the certificate.")]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_version(client: HttpClient) -> Check:
    version = client.get("/version").json().get("version")
    return Check(name="version", good=None if version is None else True, detail=str(version or "the server does not say")[:100])


def _check_ready(client: HttpClient) -> Check:
    reply = client.get("/health")
    if reply.status in (404, 405):
        return Check(name="ready", good=None, detail="there is no /health")
    good = reply.status == 200
    return Check(name="ready", good=good, detail=_message_of(reply) or f"HTTP {reply.status}", advice="Wait, or see its log.")


def _check_key(client: HttpClient, listed: Reply) -> Check:
    if listed.status in (401, 403):
        return Check(
            name="key", good=False, detail=_message_of(listed), advice="Give a key that the server knows in MASKPRO_API_KEY."
        )
    if client.get("/v1/models", with_key=False).status == 200:
        return Check(name="key", good=True, detail="nobody is asked for one")
    return Check(name="key", good=True, detail="accepted, and needed")


def _names_of(listed: Reply) -> list[str]:
    return [str(entry["id"]) for entry in _cards(listed) if "id" in entry]


def _cards(listed: Reply) -> list[Mapping[str, Any]]:
    data = listed.json().get("data")
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []


def _check_model(listed: Reply, names: list[str], model: str | None) -> Check:
    shown = ", ".join(names[:5])
    if listed.status != 200:
        advice = "Ask again once it is ready and takes the key."
        return Check(name="model", good=False, detail=f"/v1/models: HTTP {listed.status}", advice=advice)
    if not names:
        return Check(name="model", good=False, detail="/v1/models names none", advice="Is this a server with OpenAI's routes?")
    if model is not None and model not in names:
        return Check(name="model", good=False, detail=f"{model} is not among: {shown}", advice="Use one of these names.")
    return Check(name="model", good=True, detail=shown)


def _check_limits(listed: Reply, model: str | None) -> Check:
    length = next((c.get("max_model_len") for c in _cards(listed) if model in (None, c.get("id"))), None)
    if not isinstance(length, int):
        return Check(name="limits", good=None, detail="the server does not say")
    return Check(name="limits", good=True, detail=f"prompt and answer together have {length} tokens at most")


def _check_clock(listed: Reply) -> Check:
    try:
        told = parsedate_to_datetime(listed.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return Check(name="clock", good=None, detail="the server does not say")
    off = told - time.time()
    good = abs(off) <= _MOST_CLOCK_S
    detail = "the same as here" if abs(off) < 2 + listed.seconds else f"{abs(off):.0f} s {'ahead' if off > 0 else 'behind'}"
    return Check(name="clock", good=good, detail=detail, advice="Set the clock of one of the two machines.")


def _check_answers(client: HttpClient, model: str) -> Iterator[Check]:
    """A short answer, whole; and a stream."""
    ways: list[tuple[str, dict[str, object]]] = [
        ("/v1/completions", {"prompt": _PROMPT}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": _PROMPT}]}),
    ]
    for path, prompt in ways:
        reply = client.post(path, {"model": model, "max_tokens": 4, "temperature": 0, **prompt})
        if reply.status not in (404, 405):
            break
    if reply.status != 200 or not reply.json().get("choices"):
        detail = f"{path}: HTTP {reply.status} {_message_of(reply)}".rstrip()
        yield Check(name="completion", good=False, detail=detail, advice="See the server's log.")
        return
    yield Check(name="completion", good=True, detail=f"{path} answers in {reply.seconds:.2f} s")
    yield from _check_stream(client, path, {"model": model, "temperature": 0, **prompt})


def _check_stream(client: HttpClient, path: str, fields: dict[str, object]) -> Iterator[Check]:
    """Time to the first token, and whether pieces come as they are made; a verdict of `no` is reached twice."""
    held, arrivals, tokens = 0, list[float](), _LEAST_TOKENS
    for _ in range(_MOST_STREAMS):
        reply, found = client.stream(path, {**fields, "max_tokens": tokens, "stream": True})
        if arrivals and not found:  # so many are more than the server gives
            break
        arrivals = found
        if reply.status != 200 or not arrivals:
            detail = f"HTTP {reply.status} {_message_of(reply)}".rstrip()
            yield Check(name="streaming", good=False, detail=detail, advice="See the server's log.")
            return
        came_at_once = len(arrivals) < 4 or _come_at_once(arrivals)
        if came_at_once and (len(arrivals) < 4 or arrivals[-1] < _LEAST_JUDGED_S):
            tokens = min(4 * tokens, _MOST_TOKENS)  # too little to tell
            continue
        held = held + 1 if came_at_once else 0
        if held != 1:
            break
    yield Check(name="first token", good=True, detail=f"after {arrivals[0] * 1e3:.0f} ms")
    detail = f"{len(arrivals)} pieces over {arrivals[-1] - arrivals[0]:.3f} s"
    if held > 1:
        advice = "Something in between holds them back: switch buffering off there (nginx: proxy_buffering off)."
        yield Check(name="streaming", good=False, detail=f"{detail}, all at the end", advice=advice)
    else:
        judged = len(arrivals) >= 4 and held == 0 and not _come_at_once(arrivals)
        yield Check(name="streaming", good=True if judged else None, detail=detail + ("" if judged else ": too few to tell"))


def _come_at_once(arrivals: Sequence[float]) -> bool:
    """Whether pieces were there together; the two longest waits do not count: this machine may have done something else then."""
    gaps = sorted(later - earlier for earlier, later in pairwise(arrivals))
    return sum(gaps[:-2]) < max(_BURST_S, _BURST_PIECE_S * len(arrivals), _BURST_SHARE * arrivals[-1])


def _message_of(reply: Reply) -> str:
    """What an answer says of itself, in a line."""
    value = reply.json()
    error = value.get("error")
    message = error.get("message") if isinstance(error, dict) else error or value.get("status")
    return " ".join(str(message).split())[:200] if message else ""
