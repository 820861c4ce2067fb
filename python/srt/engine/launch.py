"""Starting and ending engine processes (docs/contracts.md section 5); loads no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import replace

from srt.channel import engine_command
from srt.config import Settings, settings_json


class EngineProcess:
    """One copy's process. `sentinel` is a pidfd: readable once the process has ended."""

    def __init__(self, settings: Settings, dp_rank: int, endpoint: str) -> None:
        command, env = engine_command(dp_rank, endpoint)
        self.dp_rank = dp_rank
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env)
        self.sentinel = os.pidfd_open(self._process.pid)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the sentinel says so
            alone = replace(settings, http_workers=1)  # who calls from here is the only one
            self._process.stdin.write(settings_json(alone).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def death(self) -> str | None:
        """How the process ended, or None while it lives."""
        code = self._process.poll()
        if code is None:
            return None
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"engine process {self.pid} (copy {self.dp_rank}) is gone: {how}"

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None if it still runs after `timeout_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the process: SIGTERM, SIGKILL after `timeout_s`. May be called twice."""
        if self._process.poll() is None:
            self._process.terminate()
            if self.wait(timeout_s) is None:
                self._process.kill()
                self._process.wait()
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            os.close(self.sentinel)
