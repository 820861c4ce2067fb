"""Works batches off, the oldest first, beside online traffic and behind it.

Lines run at the lowest priority, at most `width` at a time. Their answers are kept in small groups;
what a killed server had not kept yet is asked again by the next.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from srt.server.batches.lines import (
    MAX_LINES,
    BadLine,
    Handler,
    InputLine,
    InsideRequest,
    answer_of,
    parse_line,
    read_lines,
    refusal_of,
)
from srt.server.batches.store import Answer, Batch, BatchStore

T = TypeVar("T")
_log = logging.getLogger("srt.server")
_POLL_S = 1.0  # other processes may add batches and ask to cancel them
_KEEP_S = 0.2
_RETRY_S = 0.5
_TRY_AGAIN = (429, 503)  # no answer to the line: the queue is full, or the server is ending


class BatchRunner:
    """The task that works off the batches of a folder, and the thread that its store lives in.

    The folder is made when first something is kept in it.

    Args:
        handlers: by the path that a batch names.
        width: lines under way at once.
    """

    def __init__(self, folder: Path, handlers: Mapping[str, Handler], width: int) -> None:
        self.endpoints = tuple(handlers)
        self.handlers = handlers
        self.width = width
        self._folder = folder
        self._store: BatchStore | None = None
        self._thread = ThreadPoolExecutor(1, "srt-batches")
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def use(self, call: Callable[[BatchStore], T]) -> T:
        """Use the store off the event loop, one at a time."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: call(self._open())
        )

    def start(self) -> None:
        """Go on with what an earlier server left, if it left anything."""
        if self._folder.exists() and self._task is None:
            self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """There is news in the store."""
        self._news.set()

    async def close(self) -> None:
        """Stop asking; what runs is left to the next server."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.to_thread(self._thread.shutdown)
        if self._store is not None:
            self._store.close()

    def _open(self) -> BatchStore:
        if self._store is None:
            self._store = BatchStore(self._folder)
        return self._store

    async def _run(self) -> None:
        while not await self.use(BatchStore.take_over):
            await asyncio.sleep(_POLL_S)
        while True:
            self._news.clear()
            batches = await self.use(BatchStore.open_batches)
            for batch in batches:
                try:
                    await self._work_off(batch)
                except Exception:  # noqa: BLE001 (one batch must not hold up the others)
                    _log.exception("batch %s failed", batch.id)
                    await self._fail(batch, "internal_error", "the server's log says why")
            if not batches:
                await _wait(self._news, _POLL_S)

    async def _work_off(self, batch: Batch) -> None:
        path = await self.use(lambda store: store.content_path(batch.input_file_id))
        if batch.status == "validating":
            total = await asyncio.to_thread(lambda: sum(1 for _ in read_lines(path)))
            if not 1 <= total <= MAX_LINES:
                why = f"the input file has {total} lines; it must have 1 to {MAX_LINES}"
                return await self._fail(batch, "invalid_file", why)
            changes = {"status": "in_progress", "total": total, "in_progress_at": _now()}
            await self._update(batch, **changes)
        work = _Work(self, batch, path)
        ending = await work.run()
        await self._finish(batch, ending)
        return None

    async def _finish(self, batch: Batch, ending: str) -> None:
        """Make the files and the last status; may be done twice."""
        if ending == "completed":
            await self._update(batch, status="finalizing", finalizing_at=_now())
        for failed in (False, True):
            make = partial(BatchStore.write_answers, batch=batch, failed=failed, created_at=_now())
            await self.use(make)
        await self._update(batch, status=ending, **{f"{ending}_at": _now()})
        _log.info("batch %s %s", batch.id, ending)

    async def _fail(self, batch: Batch, code: str, message: str) -> None:
        errors = [{"code": code, "message": message, "line": None, "param": "input_file_id"}]
        await self._update(batch, status="failed", failed_at=_now(), errors=errors)

    async def _update(self, batch: Batch, **changes: object) -> None:
        await self.use(lambda store: store.update_batch(batch.id, changes))


class _Work:
    """The lines of one batch under way."""

    def __init__(self, runner: BatchRunner, batch: Batch, path: Path) -> None:
        self._runner = runner
        self._batch = batch
        self._path = path
        self._handler = runner.handlers[batch.endpoint]
        self._answers: list[Answer] = []
        self._running: dict[asyncio.Task[None], InsideRequest] = {}
        self._is_stopping = False

    async def run(self) -> str:
        """Answer every line that has no answer; returns completed, expired or cancelled."""
        done = await self._runner.use(lambda store: store.answered_lines(self._batch.id))
        lines = self._lines(done)
        ending = "completed"
        try:
            while True:
                more = await asyncio.to_thread(self._take, lines)
                for index, line in more:
                    self._start(index, line)
                await self._keep()
                if self._running:
                    await asyncio.wait(
                        list(self._running), timeout=_KEEP_S, return_when=asyncio.FIRST_COMPLETED
                    )
                elif not more:
                    break
                ending = await self._asked_to_end()
                if ending != "completed":
                    break
        finally:
            await self._stop()
        if ending == "expired":
            self._answers += [
                refusal_of(i, "batch_expired", "the batch expired first", line.custom_id)
                for i, line in self._lines(done | await self._answered())
            ]
        await self._keep()
        return ending

    def _lines(self, done: set[int]) -> Iterator[tuple[int, InputLine]]:
        """The good ones among the lines without an answer; the others are refused on the way."""
        known: set[str] = set()
        for index, text in enumerate(read_lines(self._path)):
            try:
                line = parse_line(text, self._batch.endpoint, known)
            except BadLine as bad:
                if index not in done:
                    self._answers.append(refusal_of(index, bad.code, str(bad), bad.custom_id))
                continue
            if index not in done:
                yield index, line

    def _take(self, lines: Iterator[tuple[int, InputLine]]) -> list[tuple[int, InputLine]]:
        room = self._runner.width - len(self._running)
        return list(itertools.islice(lines, room))

    def _start(self, index: int, line: InputLine) -> None:
        request = InsideRequest(line.url, bytes(line.body))
        task = asyncio.create_task(self._answer(index, line, request))
        self._running[task] = request
        task.add_done_callback(lambda ended: self._running.pop(ended, None))

    async def _answer(self, index: int, line: InputLine, request: InsideRequest) -> None:
        while True:
            status, body = await request.answer(self._handler)
            if self._is_stopping:
                return
            if status not in _TRY_AGAIN:
                self._answers.append(answer_of(index, line, status, body))
                return
            request = InsideRequest(line.url, bytes(line.body))
            await asyncio.sleep(_RETRY_S)

    async def _stop(self) -> None:
        self._is_stopping = True
        for request in self._running.values():
            request.leave()
        if self._running:
            await asyncio.wait(list(self._running), timeout=_RETRY_S)
        for task in list(self._running):
            task.cancel()

    async def _keep(self) -> None:
        kept, self._answers = self._answers, []
        if kept:
            await self._runner.use(lambda store: store.add_answers(self._batch.id, kept))

    async def _answered(self) -> set[int]:
        await self._keep()
        return await self._runner.use(lambda store: store.answered_lines(self._batch.id))

    async def _asked_to_end(self) -> str:
        batch = await self._runner.use(lambda store: store.get_batch(self._batch.id))
        if batch is not None and batch.status == "cancelling":
            return "cancelled"
        return "expired" if time.time() >= self._batch.expires_at else "completed"


def _now() -> int:
    return int(time.time())


async def _wait(event: asyncio.Event, seconds: float) -> None:
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([waiting], timeout=seconds)
    waiting.cancel()
