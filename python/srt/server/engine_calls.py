"""Questions to the engines that are no sequences, and their answers."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import msgspec

from srt.channel import Call, CallResult
from srt.errors import EngineDead
from srt.server.engines import Engines


class EngineCalls:
    """Asks engines and waits for what they say; a death answers all.

    Args:
        first_id: of the calls: it tells whose they are.
    """

    def __init__(self, engines: Engines, first_id: int) -> None:
        self._engines = engines
        self._ids = itertools.count(first_id)
        self._waiting: dict[int, asyncio.Future[CallResult]] = {}
        engines.on_death.append(self._fail)

    async def ask_all(
        self, method: str, timeout_s: float | None = 30.0, **args: Any
    ) -> list[CallResult]:
        """Ask every engine; see `ask`."""
        everyone = range(len(self._engines))
        return await asyncio.gather(*(self.ask(i, method, timeout_s, **args) for i in everyone))

    async def ask(
        self, index: int, method: str, timeout_s: float | None = 30.0, **args: Any
    ) -> CallResult:
        """Ask one engine. Raises EngineDead if it is dead, or silent for `timeout_s` (None: never).

        A call without timeout may keep the engine from stepping: until its end silence is no hang.
        """
        self._engines.check_alive()
        engine = self._engines[index]
        call_id = next(self._ids)
        self._waiting[call_id] = asyncio.get_running_loop().create_future()
        engine.num_long_calls += timeout_s is None
        self._engines.send(engine, _call(call_id, method, args))
        try:
            return await asyncio.wait_for(self._waiting[call_id], timeout_s)
        except asyncio.TimeoutError as error:
            raise EngineDead(f"the engine did not answer {method} in {timeout_s:g} s") from error
        finally:
            if timeout_s is None:
                engine.num_long_calls -= 1
                engine.last_heard = time.monotonic()

    def tell_all(self, method: str, **args: Any) -> None:
        """Ask every engine for something whose answer does not matter."""
        for engine in self._engines:
            self._engines.send(engine, _call(next(self._ids), method, args))

    def take(self, result: CallResult) -> None:
        """One answer."""
        waiting = self._waiting.pop(result.call_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(result)

    def _fail(self, error: EngineDead) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)


def _call(call_id: int, method: str, args: dict[str, Any]) -> Call:
    raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in args.items()}
    return Call(call_id=call_id, method=method, args=raw)
