"""A whole server in a thread, on a free port, with fake engines behind it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

import tiny_tokenizer
from server.fake_engine import READY, FakeEngine
from srt.channel import EngineReady
from srt.config import Settings
from srt.errors import ConfigError, LoadError
from srt.server.serve import Server

TIMEOUT_S = 30.0


class Running:
    """Use as a context manager; `engines` are the doubles, `http` is a client for the server."""

    def __init__(self, model: Path, ready: EngineReady = READY, **settings: Any) -> None:
        given = {"model_path": str(model), "served_model_name": "tiny", "port": 0}
        self._settings = Settings(**{**given, **settings})
        self._ready = ready
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._error: Exception | None = None
        self.engines: list[FakeEngine] = []
        self.exit_code: int | None = None
        self.url = ""

    @property
    def engine(self) -> FakeEngine:
        return self.engines[0]

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._is_up.wait(TIMEOUT_S)
        if self._error is not None:
            raise self._error
        assert self._server is not None
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for engine in self.engines:
            engine.release()
        self.http.close()
        self.stop()
        self.join()

    def stop(self) -> None:
        """As SIGTERM does."""
        if self._loop is not None and self._server is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._server.request_stop)

    def join(self) -> int | None:
        """Wait for the end of the server; returns its exit code."""
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        return self.exit_code

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def generate(self, **body: Any) -> Any:
        answer = self.post("/generate", **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_idle(self) -> None:
        """Until the server believes that nothing runs or waits."""
        assert self._server is not None
        assert self._server.service is not None
        assert self._loop is not None
        idle = self._server.service.client.idle.wait()
        asyncio.run_coroutine_threadsafe(idle, self._loop).result(TIMEOUT_S)

    def _run(self) -> None:
        try:
            self.exit_code = asyncio.run(self._main())
        except (ConfigError, LoadError) as error:
            self._error = error
        finally:
            self._is_up.set()

    async def _main(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._server = Server(self._settings, self._start_engine)
        up = asyncio.create_task(self._tell_up())
        try:
            return await self._server.run()
        finally:
            up.cancel()

    async def _tell_up(self) -> None:
        assert self._server is not None
        await self._server.is_up.wait()
        self._is_up.set()

    async def _start_engine(self, settings: Settings, dp_rank: int, endpoint: str) -> FakeEngine:
        assert settings is self._settings
        assert dp_rank == len(self.engines)
        self.engines.append(FakeEngine(endpoint, self._ready, settings.http_workers))
        return self.engines[-1]


def ids_of(text: str) -> list[int]:
    """Token ids of the tiny tokenizer."""
    return list(tiny_tokenizer.byte_level().encode(text).ids)
