"""What may be switched on to watch a server: a log of requests, traces. And TLS, checked early."""

from __future__ import annotations

import contextlib
import importlib
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from srt.config import Settings
from srt.errors import ConfigError
from srt.server.explain import explain
from srt.server.request_book import RequestLog
from srt.server.service import Service


def check_observers(settings: Settings) -> None:
    """Raise ConfigError for what could not be opened later, when the model has been loaded."""
    if settings.ssl_certfile is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                f"--ssl-certfile {settings.ssl_certfile} and --ssl-keyfile "
                f"{settings.ssl_keyfile} cannot be used: {error}"
            ) from error
    if settings.request_log not in (None, "-"):
        try:
            with Path(settings.request_log).open("a"):
                pass
        except OSError as error:
            raise ConfigError(f"--request-log cannot be written: {error}") from error
    if settings.otlp_endpoint is not None:
        if not settings.otlp_endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"--otlp-endpoint is {settings.otlp_endpoint!r}; it must begin with http:// or "
                "https://"
            )
        try:
            importlib.import_module("srt.server.tracing")
        except ImportError as error:
            raise ConfigError(
                f"--otlp-endpoint needs packages that are not installed ({error}); "
                "pip install 'srt[otlp]'"
            ) from error


@contextlib.asynccontextmanager
async def observing(service: Service) -> AsyncIterator[None]:
    """While entered, every request that ends is logged and traced as the settings want it."""
    settings, client = service.settings, service.client

    async def answer(request_id: str) -> object:
        return await explain(client, request_id)

    client.crew.answers("explain", answer)
    async with contextlib.AsyncExitStack() as stack:
        if settings.request_log == "-":
            client.book.on_end.append(RequestLog(sys.stderr).write)
        elif settings.request_log is not None:
            path = Path(settings.request_log)
            file = stack.enter_context(path.open("a", encoding="utf-8"))
            client.book.on_end.append(RequestLog(file).write)
        if settings.otlp_endpoint is not None:
            tracing = importlib.import_module("srt.server.tracing")
            tracer = tracing.Tracer(settings.otlp_endpoint, settings.model_name, client)
            stack.push_async_callback(tracer.close)
        yield
        client.book.on_end.clear()
