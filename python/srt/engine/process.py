"""The engine process: `python -m srt.engine.process --dp-rank R --endpoint ENDPOINT`.

The server starts one for each copy of the model and writes the settings to its standard input,
which stays open: when it closes, the server is gone and so is the engine. This process is the
first rank of the copy on its node and starts the others in the same way; if one dies, all do.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import torch
import zmq

from srt.channel import EngineFailed, EngineReady, encode
from srt.config import Settings, settings_from_json, settings_json
from srt.core import native
from srt.engine.engine import Engine
from srt.engine.links import HOLD_WAIT_MS, IDLE_WAIT_MS, FollowerLink, LeaderLink, Link
from srt.engine.place import Place, device_index, first_place, follower_address, local_ranks
from srt.engine.startup import Rank, resolve_device, start_rank, use_device
from srt.errors import ConfigError, LoadError
from srt.parallel import TensorParallel, init_tensor_parallel
from srt.peering import join_peers

log = logging.getLogger("srt.engine")

EXIT_FAILED = 1
EXIT_ORPHANED = 3


def main(argv: list[str] | None = None) -> int:
    """Runs one rank to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="srt.engine.process", allow_abbrev=False)
    parser.add_argument("--dp-rank", type=int, default=0)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--tp-rank", type=int)
    parser.add_argument("--init-addr", default="")
    args = parser.parse_args(argv)
    settings = settings_from_json(sys.stdin.readline())
    place = first_place(settings, args.dp_rank, args.endpoint)
    if args.tp_rank is not None:
        place = replace(place, tp_rank=args.tp_rank, init_addr=args.init_addr)
    set_up_logging(settings, place)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's: it drains
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if args.tp_rank is None:
        siblings = [_start_sibling(settings, place, rank) for rank in local_ranks(settings)[1:]]
        threading.Thread(target=_die_with_siblings, args=(siblings, place), daemon=True).start()
    return run_rank(settings, place)


def run_rank(settings: Settings, place: Place) -> int:
    """Loads, serves until a shutdown, returns the exit code. Failures are told to the server."""
    link = make_link(settings, place)
    signal.signal(signal.SIGTERM, lambda *_: link.request_stop())
    try:
        serve(settings, place, link)
    except (LoadError, ConfigError) as e:
        log.error("%s", e)
        link.send(EngineFailed(str(e)))
    except Exception as e:
        log.exception("the engine failed")
        link.send(EngineFailed(f"{type(e).__name__}: {e}"))
    else:
        link.close()
        return 0
    link.close()
    return EXIT_FAILED


def make_link(settings: Settings, place: Place) -> Link:
    """The rank's way to its records."""
    if place.tp_rank > 0:
        return FollowerLink(follower_address(settings, place, place.tp_rank))
    others = range(1, settings.tp_size)
    addresses = [follower_address(settings, place, r) for r in others]
    return LeaderLink(place.endpoint, addresses, settings.http_workers)


def serve(settings: Settings, place: Place, link: Link) -> None:
    """Starts the rank and does turns until a shutdown."""
    device = resolve_device(settings.device, device_index(settings, place))
    use_device(device)
    tp = join_ranks(settings, place, device.type)
    num_local = len(local_ranks(settings)) * settings.dp_size
    if device.type == "cpu":  # ranks share the cores instead of fighting for them
        torch.set_num_threads(max(1, torch.get_num_threads() // num_local))
    rank = start_rank(settings, tp, device, num_local)
    engine = Engine(settings, rank, place.tp_rank)
    tp.barrier()  # all can serve
    link.send(ready_record(rank))
    log_sizes(rank)
    if device.type == "cpu":
        # Loading left this thread a pool of OpenMP threads. With more threads than cores libgomp
        # stops spinning between loops, and the forward's own pool sleeps hundreds of times a step.
        native.cpu_release_threads()
    gc.collect()
    gc.freeze()  # nothing made so far is garbage: later collections need not look at it
    while not engine.is_done:
        own = engine.own_records()
        if engine.is_busy:
            wait_ms = engine.hold_ms
        else:
            wait_ms = IDLE_WAIT_MS if engine.is_idle else HOLD_WAIT_MS
        records = link.receive(is_busy=engine.is_busy, own=own, wait_ms=wait_ms)
        if records is None:
            stats = engine.heartbeat_if_due()
            if stats is not None:
                link.send(stats)
            continue
        for record in engine.turn(records):
            link.send(record)
    engine.close()
    tp.close()


def join_ranks(settings: Settings, place: Place, device_type: str) -> TensorParallel:
    """Meets the copy's other ranks."""
    if settings.nnodes == 1 and settings.tp_size > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    device = resolve_device(device_type, device_index(settings, place))
    tp = init_tensor_parallel(place.tp_rank, settings.tp_size, place.init_addr, device)
    return join_peers(tp, device, enabled=not settings.disable_custom_all_reduce)


def ready_record(rank: Rank) -> EngineReady:
    """What the server is told when the engine can serve."""
    return EngineReady(
        max_total_tokens=rank.max_total_tokens,
        max_seq_len=rank.limits.max_seq_len,
        max_running=rank.limits.max_running,
        vocab_size=rank.config.vocab_size,
        table=rank.report.rows,
        is_generation=rank.is_generation,
        embedding=rank.embedding,
    )


def log_sizes(rank: Rank) -> None:
    """The line that operators tune by."""
    log.info(
        "max_total_num_tokens=%d, max_prefill_tokens=%d, max_running_requests=%d, context_len=%d",
        rank.max_total_tokens,
        rank.limits.max_step_tokens - rank.limits.max_running,
        rank.limits.max_running,
        rank.limits.max_seq_len,
    )


def set_up_logging(settings: Settings, place: Place) -> None:
    """Lines on standard error that name the rank where there are several."""
    names = []
    if settings.dp_size > 1:
        names.append(f"DP{place.dp_rank}")
    if settings.tp_size > 1:
        names.append(f"TP{place.tp_rank}")
    prefix = " ".join(["[%(asctime)s", *names])
    level = settings.log_level if place.tp_rank == 0 else "warning"
    logging.basicConfig(level=level.upper(), format=f"{prefix}] %(message)s", stream=sys.stderr)


def _start_sibling(settings: Settings, place: Place, tp_rank: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "srt.engine.process"),
            *("--dp-rank", str(place.dp_rank), "--tp-rank", str(tp_rank)),
            *("--endpoint", place.endpoint, "--init-addr", place.init_addr),
        ],
        stdin=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(settings_json(settings).encode() + b"\n")
    process.stdin.flush()
    return process


def _die_with_parent() -> None:
    """Ends the process when its standard input does, wherever the main thread is stuck."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(EXIT_ORPHANED)


def _die_with_siblings(siblings: list[subprocess.Popen[bytes]], place: Place) -> None:
    """Tells the server and ends the process when a sibling fails: the rest would wait for ever."""
    sentinels = {os.pidfd_open(p.pid): p for p in siblings}
    poller = select.poll()
    for sentinel in sentinels:
        poller.register(sentinel, select.POLLIN)
    while sentinels:
        for sentinel, _ in poller.poll():
            poller.unregister(sentinel)
            process = sentinels.pop(sentinel)
            code = process.wait()
            if code != 0:
                _fail_at_once(f"a rank of the engine (pid {process.pid}) ended with {code}", place)


def _fail_at_once(message: str, place: Place) -> None:
    """Tells the first HTTP worker, which tells the others."""
    log.critical(message)
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(f"{place.endpoint}.out")
    socket.send(encode(EngineFailed(message)))
    context.destroy(linger=500)
    os._exit(EXIT_FAILED)


if __name__ == "__main__":
    sys.exit(main())
