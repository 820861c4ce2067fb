"""A server process of its own over a fake engine, for tests that kill it.

`python fake_server.py MODEL PORT STORAGE`. Each step takes a few milliseconds, as a model's would.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass

from server.fake_engine import FakeEngine
from srt.channel import EngineEnd
from srt.config import Settings
from srt.server.serve import Server

STEP_S = 0.004


@dataclass
class SlowEngine(FakeEngine):
    """A fake engine that needs time."""

    def _step(self, end: EngineEnd) -> None:
        time.sleep(STEP_S)
        super()._step(end)


async def _start_engine(settings: Settings, dp_rank: int, endpoint: str) -> FakeEngine:  # noqa: ARG001
    return SlowEngine(endpoint)


def main() -> None:
    """Serve until killed."""
    model, port, storage = sys.argv[1:]
    settings = Settings(
        model_path=model,
        served_model_name="tiny",
        port=int(port),
        file_storage_path=storage,
        skip_warmup=True,
    )
    asyncio.run(Server(settings, _start_engine).run())


if __name__ == "__main__":
    main()
