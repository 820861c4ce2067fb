"""S7: HTTP streaming under Poisson arrivals, on random weights: first-token and inter-token times.

`python -m bench serving --shape L8B --rates 8 16 --json out.json` starts a server, waits until it
is ready, and runs `srt.bench_serving` against it in a process of its own for each rate.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.record import Record, write
from bench.shapes import SHAPES, write_shape

READY_TIMEOUT_S = 180.0
FIGURES = (
    ("TTFT p50", "median_ttft_ms"),
    ("TTFT p99", "p99_ttft_ms"),
    ("ITL p50", "median_itl_ms"),
    ("ITL p99", "p99_itl_ms"),
)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def running_server(model: Path, settings: Sequence[str]) -> Iterator[tuple[str, float]]:
    """A server on random weights: its URL, and the seconds from process start to ready."""
    port = free_port()
    begin = time.perf_counter()
    command = [sys.executable, "-m", "srt.launch_server", "--model-path", str(model)]
    command += ["--load-format", "dummy", "--skip-tokenizer-init", "--port", str(port)]
    # A name that is no folder, so that the client does not look for a tokenizer in it.
    command += ["--log-level-http", "warning", "--served-model-name", model.name]
    for pair in settings:
        name, _, value = pair.partition("=")
        command += [f"--{name.replace('_', '-')}", *([value] if value != "true" else [])]
    server = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        while not _answers(f"{url}/health"):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with {server.returncode}")
            if time.perf_counter() - begin > READY_TIMEOUT_S:
                raise TimeoutError(f"the server was not ready within {READY_TIMEOUT_S} s")
            time.sleep(0.02)
        yield url, time.perf_counter() - begin
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def serve_load(url: str, rate: float, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run of `srt.bench_serving`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.jsonl"
        command = [sys.executable, "-m", "srt.bench_serving", "--base-url", url]
        command += ["--dataset-name", "random", "--random-range-ratio", "1.0", "--disable-tqdm"]
        command += ["--random-input-len", str(args.n_in), "--random-output-len", str(args.n_out)]
        command += ["--num-prompts", str(int(rate * args.seconds)), "--request-rate", str(rate)]
        command += ["--warmup-requests", "4", "--output-file", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figures: dict[str, Any] = json.loads(out.read_text().splitlines()[-1])
    if figures["failed"]:
        raise RuntimeError(f"{figures['failed']} requests failed")
    return figures


def main() -> None:
    """Serve one shape at the given rates and write the records."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--shape", choices=sorted(SHAPES), default="L8B")
    ap.add_argument("--rates", type=float, nargs="+", default=[8.0, 16.0], help="requests a second")
    ap.add_argument("--seconds", type=float, default=20.0, help="how long requests arrive")
    ap.add_argument("--in", type=int, default=1024, dest="n_in")
    ap.add_argument("--out", type=int, default=128, dest="n_out")
    ap.add_argument("--set", nargs="*", default=[], metavar="FLAG=VALUE", help="server flags")
    ap.add_argument("--commit", help="commit to record where git is not at hand")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(args.shape, Path(folder))
        with running_server(model, args.set) as (url, ready_s):
            records.append(Record(f"{args.shape} server start to ready", {}, ready_s, "s"))
            for rate in args.rates:
                figures = serve_load(url, rate, args)
                case = {"rate": rate, "in": args.n_in, "out": args.n_out, "flags": args.set}
                case |= {"requests": figures["completed"]}
                for label, key in FIGURES:
                    name = f"{args.shape} S7 {rate:g} req/s {label}"
                    records.append(Record(name, case, figures[key], "ms"))
    for record in records:
        print(record.row(), flush=True)
    if args.json:
        write(records, args.json, commit=args.commit)


if __name__ == "__main__":
    main()
