"""Starts one engine process and tells when it ends; what it runs, it loads itself."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import PIPE, Process

from srt.channel import engine_command
from srt.config import Settings, settings_json

_GRACE_S = 5.0


class ChildProcess:
    """`python -m srt.engine.process`; its standard input stays open as long as we live."""

    def __init__(self, process: Process, dp_rank: int) -> None:
        self._process = process
        self._dp_rank = dp_rank

    async def exited(self) -> tuple[int, str]:
        """Returns when the process has ended: its exit code, and a sentence about it."""
        code = await self._process.wait()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        return code, f"engine process {self._process.pid} (dp rank {self._dp_rank}) ended {how}"

    async def stop(self) -> None:
        """Close its standard input, which ends it; terminate and kill if it does not go."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        for end in (self._process.terminate, self._process.kill):
            try:
                await asyncio.wait_for(self._process.wait(), _GRACE_S)
            except (TimeoutError, asyncio.TimeoutError):
                end()
            else:
                return
        await self._process.wait()


async def start_engine(settings: Settings, dp_rank: int, endpoint: str) -> ChildProcess:
    """Start the engine of one copy, in its own session: Ctrl-C is for the server alone."""
    command, env = engine_command(dp_rank, endpoint)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, env=env, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(settings_json(settings).encode() + b"\n")
    await process.stdin.drain()
    return ChildProcess(process, dp_rank)
