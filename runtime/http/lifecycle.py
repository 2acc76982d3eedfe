"""Running the server: the socket, the loading, the signals.

The port is taken first, so that a port in use shows before minutes of loading. While the model loads, the server already answers:
`/health` says 503. On SIGTERM or SIGINT it takes no new requests, finishes the running ones within the time it is given, and
stops; a second signal stops it at once. On SIGHUP it opens its request log and reads its certificate again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.runtime.generate.generator import TextGenerator
from maskpro_deploy.runtime.generate.loading import load
from maskpro_deploy.runtime.http import traces
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.listening import base_url, listen
from maskpro_deploy.runtime.http.memory import freeze_what_is_loaded
from maskpro_deploy.runtime.http.request_log import STDERR, RequestLog
from maskpro_deploy.system.throttle import throttled

if TYPE_CHECKING:
    from maskpro_deploy.runtime.http.routes import GeneratorSlot

log = logging.getLogger(__name__)

# what clients can make these say is throttled
_LOUD = ("uvicorn.error", "asyncio", "concurrent.futures")


class _Lifetime:
    """One run of a server, from loading to the last connection."""

    def __init__(self, bundle: Path, config: ServeConfig, listener: socket.socket, on_ready: Callable[[str, str], None]) -> None:
        self._bundle = bundle
        self._config = config
        self._listener = listener
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._request_log: RequestLog | None = None
        self.url = base_url(listener, "http" if config.tls is None else "https")

    @property
    def reloads(self) -> bool:
        """Whether `request_reload` has something to do."""
        return self._config.tls is not None or self._config.request_log not in (None, STDERR)

    def request_reload(self) -> None:
        """Open the request log and read the certificate again; what fails is logged, and stays as it was. From any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._reload)

    def _reload(self) -> None:
        tls, request_log = self._config.tls, self._request_log
        renewals = [] if tls is None else [tls.reload]
        renewals += [] if request_log is None else [request_log.reopen]
        for renew in renewals:
            try:
                renew()
            except MaskProError as e:
                log.warning("reloading failed, the old file stays in use: %s", e)

    def request_stop(self) -> None:
        """Stop; called again: at once. From any thread, also from a signal handler."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped already
                self._loop.call_soon_threadsafe(lambda: (self._hurry if self._stop.is_set() else self._stop).set())

    async def run(self) -> bool:
        """Serve until told to stop; whether all work was finished. A MaskProError if the bundle cannot be loaded."""
        with throttled(*_LOUD, *traces.LOGGERS):
            return await self._run()

    async def _run(self) -> bool:
        self._loop = asyncio.get_running_loop()
        manifest = Manifest.load(self._bundle, engines=False)
        loading = _load_in_thread(self._bundle, self._config)
        try:
            # only now: they take a fifth of a second, in which the model is being loaded already
            from maskpro_deploy.runtime.http.routes import GeneratorSlot
            from maskpro_deploy.runtime.http.server import create_app
            from maskpro_deploy.runtime.http.uvicorn_ import make_uvicorn

            defaults = self._config.read_defaults(self._bundle)
            slot = GeneratorSlot(self._config.served_model_name or manifest.model.name, defaults=defaults)
            slot.weights = _name_weights(manifest)
            app = create_app(slot, self._config)
        except BaseException:
            await asyncio.wait({loading})  # a process that ends while onnxruntime opens a graph is aborted
            raise
        self._request_log = app.state.request_log
        server = make_uvicorn(app, self._config)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        try:
            generator = await self._until_stopped(loading)
            return generator is None or await self._serve(slot, generator)
        finally:
            server.should_exit = True
            await serving
            if self._request_log is not None:
                self._request_log.close()
            if app.state.tracer is not None:
                await asyncio.to_thread(app.state.tracer.close)

    async def _serve(self, slot: GeneratorSlot, generator: TextGenerator) -> bool:
        try:
            slot.fill(generator)
            self._on_ready(self.url, slot.model_name)
            await self._stop.wait()
            draining = asyncio.create_task(asyncio.to_thread(generator.drain, self._config.shutdown_timeout_s))
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            clean = draining.done() and draining.result()
            generator.close()  # what still runs ends now, and its clients get an error
            await draining
            return clean
        finally:
            generator.close()

    async def _until_stopped(self, loading: asyncio.Future[TextGenerator]) -> TextGenerator | None:
        """The generator, or None if told to stop before it was there."""
        stopped = asyncio.create_task(self._stop.wait())
        both: set[asyncio.Future[Any]] = {loading, stopped}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return loading.result() if loading.done() else None


def _name_weights(manifest: Manifest) -> str:
    """What a bundle's weights are, in words: "2:4 sparse, fp32"."""  # fmt: skip
    kind = f"{manifest.sparsity} sparse" if manifest.sparsity is not None else "dense"
    return f"{kind}, {manifest.graph.quantization or manifest.graph.dtype}"


def _load_in_thread(bundle: Path, config: ServeConfig) -> asyncio.Future[TextGenerator]:
    """Load in a daemon thread: unlike a pool's thread it does not hold up a process that is told to stop."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[TextGenerator] = loop.create_future()

    def work() -> None:
        try:
            settle = partial(future.set_result, load(bundle, config.runtime))
        except BaseException as e:
            settle = partial(future.set_exception, e)
        with contextlib.suppress(RuntimeError):  # the loop has gone: nobody waits any more
            loop.call_soon_threadsafe(settle)

    threading.Thread(target=work, name="maskpro-load", daemon=True).start()
    return future


def serve(bundle: Path, config: ServeConfig | None = None, on_ready: Callable[[str, str], None] | None = None) -> bool:
    """Serve a bundle until SIGTERM or SIGINT; to be called on the main thread.

    Args:
        bundle: folder written by `maskpro-deploy export`.
        config: settings; None for all defaults.
        on_ready: called with the URL and the model's name once requests are answered.

    Returns:
        Whether all running work was finished before the end.

    Raises:
        InputError: the port is in use, or `bundle` is not a bundle.
        FormatError: its generation_config.json is damaged.
        MaskProError: as `load`.
    """
    config = config or ServeConfig()
    Manifest.load(bundle, engines=False)
    config.read_defaults(bundle)
    with contextlib.closing(listen(config.host, config.port)) as listener:

        def begin(url: str, name: str) -> None:
            freeze_what_is_loaded()
            if on_ready is not None:
                on_ready(url, name)

        lifetime = _Lifetime(bundle, config, listener, begin)
        before = {s: signal.signal(s, lambda *_: lifetime.request_stop()) for s in (signal.SIGTERM, signal.SIGINT)}
        if lifetime.reloads and hasattr(signal, "SIGHUP"):
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: lifetime.request_reload())
        try:
            return asyncio.run(lifetime.run())
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def running_server(bundle: Path, config: ServeConfig | None = None) -> Iterator[str]:
    """A server in a thread of this process, for as long as the `with` block lasts.

    By default it listens on a free port of the loopback interface. What it needs and can raise is as for `serve`.

    Yields:
        The base URL, such as "http://127.0.0.1:40123" (OpenAI clients want "/v1" behind it).
    """
    config = config or ServeConfig(port=0)
    ready: threading.Event = threading.Event()
    failed: list[BaseException] = []
    with contextlib.closing(listen(config.host, config.port)) as listener:
        lifetime = _Lifetime(bundle, config, listener, lambda url, name: ready.set())

        def work() -> None:
            try:
                asyncio.run(lifetime.run())
            except BaseException as e:
                failed.append(e)
            finally:
                ready.set()

        thread = threading.Thread(target=work, name="maskpro-server")
        thread.start()
        try:
            ready.wait()
            if failed:
                raise failed[0]
            yield lifetime.url
        finally:
            lifetime.request_stop()
            thread.join()
    if failed and not isinstance(failed[0], MaskProError):
        raise failed[0]
