"""CPU time that the server side spends per streamed token, with a made-up engine behind it.

Three kinds of process: the server (and its workers), an engine that answers by rule at a given
pace, a client that only counts. The figure is the CPU time of the server's processes alone, from
the moment when all streams run to the end of the last.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import logging
import pstats
import subprocess
import sys
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bench._stream_client import TEXT
from bench._stream_phases import time_phases
from bench.record import Record, write
from srt.config import Settings
from srt.server.serve import Server

UP = "up "


class Child:
    """The engine's process, as the server wants it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def exited(self) -> tuple[int, str]:
        """When it has ended."""
        return await self._process.wait(), "the made-up engine ended"

    async def stop(self) -> None:
        """End it."""
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()


async def serve(settings: Settings, step_us: int, gather: int) -> None:
    """The server process: prints its port, and ends with its standard input."""

    async def start_engine(_: Settings, __: int, endpoint: str) -> Child:
        arguments = ["--workers", str(settings.http_workers), "--step-us", str(step_us)]
        arguments += ["--gather", str(gather)]
        command = [sys.executable, "-m", "bench._stream_engine", endpoint, *arguments]
        return Child(await asyncio.create_subprocess_exec(*command))

    server = Server(settings, start_engine)
    running = asyncio.create_task(server.run())
    up = asyncio.create_task(server.is_up.wait())
    await asyncio.wait((running, up), return_when=asyncio.FIRST_COMPLETED)
    print(f"{UP}{server.port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.request_stop()
    await running


def run_server(given: argparse.Namespace) -> None:
    """`--serve`: what `measure` starts."""
    logging.basicConfig(level="WARNING", stream=sys.stderr)
    settings = Settings(
        model_path=given.model,
        served_model_name="bench",
        port=0,
        http_workers=given.workers,
        skip_warmup=True,
        log_level_http="warning",
    )
    if not given.profile:
        uvloop.run(serve(settings, given.step_us, given.streams))
        return
    profile = cProfile.Profile()
    profile.runcall(uvloop.run, serve(settings, given.step_us, given.streams))
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(45)


def cpu_s(server: psutil.Process) -> dict[int, tuple[float, float]]:
    """CPU seconds, user and system, of the server's processes by pid, without the engine."""
    spent = {}
    for process in (server, *server.children(recursive=True)):
        if "bench._stream_engine" not in process.cmdline():
            times = process.cpu_times()
            spent[process.pid] = (times.user, times.system)
    return spent


def measure(given: argparse.Namespace, workers: int, step_us: int, kind: str) -> Record:
    """One server, one round of streams."""
    command = [sys.executable, "-m", "bench.server_stream", "--serve", "--model", given.model]
    command += ["--workers", str(workers), "--step-us", str(step_us)]
    command += ["--streams", str(given.streams)]
    if given.profile:
        command.append("--profile")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        line = process.stdout.readline()
        if not line.startswith(UP):
            raise RuntimeError("the server did not start")
        rows = run_client(given, int(line.removeprefix(UP)), kind, psutil.Process(process.pid))
    finally:
        process.stdin.close()
        process.wait(60)
    return record(given, workers, step_us, kind, rows)


def run_client(
    given: argparse.Namespace, port: int, kind: str, server: psutil.Process
) -> dict[str, dict[str, Any]]:
    """What the client told at each of its moments, and the server's CPU seconds then."""
    command = [sys.executable, "-m", "bench._stream_client", "--port", str(port), "--kind", kind]
    command += ["--streams", str(given.streams), "--tokens", str(given.tokens)]
    rows: dict[str, dict[str, Any]] = {"begin": {"cpu_s": cpu_s(server)}}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        for line in client.stdout:
            row = json.loads(line)
            rows[row["what"]] = {**row, "cpu_s": cpu_s(server)}
    if client.returncode or "ended" not in rows:
        raise RuntimeError("the client failed")
    return rows


def record(
    given: argparse.Namespace,
    workers: int,
    step_us: int,
    kind: str,
    rows: dict[str, dict[str, Any]],
) -> Record:
    """CPU microseconds per token, and what tells whether they mean anything."""
    running, ended = rows["running"], rows["ended"]
    none = (0.0, 0.0)
    before = running["cpu_s"]
    user = {pid: s[0] - before.get(pid, none)[0] for pid, s in ended["cpu_s"].items()}
    system = {pid: s[1] - before.get(pid, none)[1] for pid, s in ended["cpu_s"].items()}
    spent = {pid: user[pid] + system[pid] for pid in user}
    num_all = given.streams * given.tokens
    num_tokens = num_all - running["num_chunks"]
    seconds = ended["at_s"] - running["at_s"]
    begin = rows["begin"]["cpu_s"]
    opening = sum(map(sum, before.values())) - sum(map(sum, begin.values()))
    params = {
        "kind": kind,
        "streams": given.streams,
        "tokens": given.tokens,
        "workers": workers,
        "step_us": step_us,
        "tokens_per_s": round(num_tokens / seconds),
        "tokens_per_chunk": round(num_all / ended["num_chunks"], 2),
        "user_us": round(1e6 * sum(user.values()) / num_tokens, 2),
        "system_us": round(1e6 * sum(system.values()) / num_tokens, 2),
        "cpu_share_by_process": [round(s / seconds, 2) for s in spent.values()],
        "longest_gap_ms": round(1000 * ended["longest_gap_s"]),
        "opening_us_per_stream": round(1e6 * opening / given.streams),
    }
    return Record(
        "server CPU per streamed token",
        params,
        1e6 * sum(spent.values()) / num_tokens,
        "us",
        limit=30.0,
    )


def phase_records(given: argparse.Namespace) -> list[Record]:
    """The server's own steps of a chat stream, timed without sockets."""
    found = time_phases(Path(given.model), given.streams, TEXT)
    records = [
        Record(f"phase: {name}", {"streams": given.streams, "kind": "chat"}, us, "us")
        for name, us in found.items()
    ]
    for one in records:
        print(one.row(), flush=True)
    return records


def main() -> None:
    """Measure all that is asked for."""
    parser = argparse.ArgumentParser(prog="bench server_stream", description=__doc__)
    parser.add_argument("--model", required=True, help="folder with a tokenizer")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", default=["chat"], help="chat completions generate")
    parser.add_argument("--step-us", type=int, default=25000, help="the engine's pace; 0: none")
    parser.add_argument("--paces", type=int, nargs="+", help="several of these")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--worker-counts", type=int, nargs="+", help="several of these")
    parser.add_argument("--profile", action="store_true", help="cProfile of the server, to stderr")
    parser.add_argument("--json", type=Path, help="where to keep the records")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        run_server(given)
        return
    records = phase_records(given)
    for kind in given.kinds:
        for workers in given.worker_counts or [given.workers]:
            for step_us in given.paces or [given.step_us]:
                found = measure(given, workers, step_us, kind)
                print(found.row(), json.dumps(found.params), flush=True)
                records.append(found)
    if given.json:
        write(records, given.json)


if __name__ == "__main__":
    main()
