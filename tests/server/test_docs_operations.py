"""The operations page, followed step by step: keys, the production command, and what it tells."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.ranks import free_addr
from server.collector import Collector

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
TIMEOUT_S = 240.0


def block(kind: str, word: str) -> str:
    """The page's one block of a kind with a word in it."""
    (found,) = [code for language, code in BLOCKS if language == kind and word in code]
    return str(found)


class Production:
    """The page's production command in a folder of its own, on a free port."""

    def __init__(self, folder: Path, collector: Collector, model: Path) -> None:
        self.folder = folder
        self.port = free_addr().rpartition(":")[2]
        (folder / "models").mkdir()
        (folder / "models/SmolLM2-135M-Instruct").symlink_to(model)
        (folder / "srt-server").write_text(f'#!/bin/sh\nexec {sys.executable} -m srt.cli "$@"\n')
        (folder / "srt-server").chmod(0o755)
        self._env = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "python"),
        }
        self.run(block("sh", "openssl"))
        command = block("sh", "--otlp-endpoint").replace(
            "http://127.0.0.1:4318", collector.endpoint
        )
        more = "--max-total-tokens 4096 --device cpu --decode-log-interval 4"
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", f"exec {self._here(command).strip()} {more}"],
                cwd=folder,
                env=self._env,
                stderr=log,
            )
        context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        self.http = httpx.Client(
            base_url=f"https://localhost:{self.port}", verify=context, timeout=TIMEOUT_S
        )
        self._wait_until_ready()

    def run(self, code: str) -> str:
        """A shell block of the page."""
        done = subprocess.run(
            ["bash", "-ec", self._here(code)],
            cwd=self.folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _here(self, code: str) -> str:
        return re.sub(r"(localhost:|--port )30000", rf"\g<1>{self.port}", code)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            try:
                if self.http.get("/ready").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector, smollm2: Path
) -> Iterator[Production]:
    running = Production(tmp_path_factory.mktemp("production"), collector, smollm2)
    yield running
    running.http.close()
    running.process.kill()
    running.process.wait()


def objects(text: str) -> list[Any]:
    """JSON values that stand one behind the other."""
    decoder, found = json.JSONDecoder(), []
    while text.strip():
        value, end = decoder.raw_decode(text.strip())
        found.append(value)
        text = text.strip()[end:]
    return found


def test_where_a_requests_time_went(server: Production) -> None:
    answer, told = objects(server.run(block("sh", "/requests/story-1")))
    assert answer["meta_info"]["completion_tokens"] == 16
    (shown,) = objects(block("json", '"phase"'))
    assert told.keys() == shown.keys()
    assert told["sequences"][0].keys() == shown["sequences"][0].keys()
    assert told["sequences"][0]["steps"] == 16


def test_only_the_keys_open_it(server: Production) -> None:
    for key, status in (("alpha", 200), ("beta", 200), ("gamma", 401)):
        headers = {"authorization": f"Bearer {key}"}
        assert server.http.get("/get_server_info", headers=headers).status_code == status
    for path in ("/health", "/ready", "/readyz", "/health_generate", "/"):
        assert server.http.get(path).status_code == 200


def test_every_metric_of_the_page_is_there_and_no_other(server: Production) -> None:
    page = server.http.get("/metrics", headers={"authorization": "Bearer alpha"}).text
    announced = set(re.findall(r"^# TYPE (srt:\w+)", page, re.MULTILINE))
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `srt:"))
    assert announced == set(re.findall(r"`(srt:\w+)", table))


def test_the_log_speaks_as_the_tuning_page_says(server: Production) -> None:
    def skeleton(line: str) -> str:
        return re.sub(r"-?\d+(\.\d+)?", "N", line)

    server.http.post(
        "/generate",
        json={"text": "Once more", "sampling_params": {"max_new_tokens": 12, "ignore_eos": True}},
        headers={"authorization": "Bearer alpha"},
    )
    told = skeleton(server.log.read_text())
    tuning = (ROOT / "docs/tuning.md").read_text(encoding="utf-8")
    for start in ("max_total_num_tokens=", "Prefill batch.", "Decode batch."):
        (line,) = [line for line in tuning.splitlines() if line.startswith(start)]
        assert skeleton(line) in told, line


def test_at_the_end_it_has_drained_logged_and_traced(
    server: Production, collector: Collector
) -> None:
    server.process.terminate()
    assert server.process.wait(TIMEOUT_S) == 0, server.log.read_text()
    (shown,) = objects(block("json", '"first_token_ms"'))
    lines = [json.loads(one) for one in (server.folder / "requests.jsonl").read_text().splitlines()]
    assert lines[0].keys() == shown.keys()
    assert "story-1" in {line["request_id"] for line in lines}
    names = {span.name for span in collector.spans}
    assert names == {"request", "prepare", "queue", "prefill", "decode"}
