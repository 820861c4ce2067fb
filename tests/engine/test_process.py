"""Engine processes: ready, idle, killed, orphaned, told to end; and ranks that share a model."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.driver import assert_greedy, random_prompts
from srt.config import Settings
from srt.engine.launch import EngineProcess
from srt.errors import EngineDead, InternalServerError, InvalidParameter
from srt.llm import Engine

PROMPTS = random_prompts(12, 60, 320, seed=9)
GREEDY = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}
ENDLESS = {"temperature": 0, "max_new_tokens": 450, "ignore_eos": True}
ORPHAN = """
import os, sys
from srt.llm import Engine
engine = Engine(model_path=sys.argv[1], device="cpu", skip_tokenizer_init=True)
print(*engine._client.pids, flush=True)
os._exit(0)
"""


def start(folder: Path, **settings: Any) -> Engine:
    defaults = {"dtype": "float32", "device": "cpu", "skip_tokenizer_init": True}
    return Engine(model_path=str(folder), max_total_tokens=8192, **(defaults | settings))


def wait_for_end(pid: int, timeout_s: float = 30.0) -> None:
    """Returns when the process is gone, or a zombie of someone else's."""
    try:
        sentinel = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([sentinel], [], [], timeout_s)[0], f"process {pid} lives on"
    os.close(sentinel)


@pytest.mark.parametrize("ranks", [{"tp_size": 2}, {"dp_size": 2}], ids=str)
def test_ranks_and_copies_are_greedy(tiny: tuple[Path, Any], ranks: dict[str, int]) -> None:
    folder, model = tiny
    with start(folder, **ranks) as engine:
        results = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)
        again = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)
        pids = [p.pid for pid in engine._client.pids for p in rank_processes(pid)]
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert_greedy(model, prompt, result["token_ids"])
    assert [r["token_ids"] for r in again] == [r["token_ids"] for r in results]
    assert sum(r["meta_info"]["cached_tokens"] for r in again) > 0
    assert len(pids) == 2
    for pid in pids:
        wait_for_end(pid)


def test_two_nodes_serve_one_copy(
    tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    folder, model = tiny
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    nodes = {"tp_size": 2, "nnodes": 2, "dist_init_addr": address}
    settings = Settings(
        model_path=str(folder), dtype="float32", device="cpu", max_total_tokens=8192,
        node_rank=1, **nodes,
    )  # fmt: skip
    second = EngineProcess(settings, 0, f"ipc://{tmp_path}/unused")
    try:
        with start(folder, **nodes) as engine:
            results = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)
        assert second.wait(30.0) == 0
    finally:
        second.stop()
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert_greedy(model, prompt, result["token_ids"])


def test_a_killed_engine_is_told_to_everyone(tiny: tuple[Path, Any]) -> None:
    with start(tiny[0]) as engine:
        stream = engine.generate(input_ids=[5, 6, 7], sampling_params=ENDLESS, stream=True)
        next(stream)
        os.kill(engine._client.pids[0], signal.SIGKILL)
        with pytest.raises(InternalServerError, match="SIGKILL"):
            list(stream)
        with pytest.raises(EngineDead, match="SIGKILL"):
            engine.generate(input_ids=[5], sampling_params=GREEDY)


def test_a_killed_rank_ends_its_copy(tiny: tuple[Path, Any]) -> None:
    with start(tiny[0], tp_size=2) as engine:
        first, second = rank_processes(engine._client.pids[0])
        second.kill()
        wait_for_end(first.pid)
        with pytest.raises((EngineDead, InternalServerError)):
            engine.generate(input_ids=[5], sampling_params=GREEDY)


def test_sigterm_ends_the_engine_cleanly(tiny: tuple[Path, Any]) -> None:
    with start(tiny[0]) as engine:
        stream = engine.generate(input_ids=[5, 6, 7], sampling_params=ENDLESS, stream=True)
        next(stream)
        os.kill(engine._client.pids[0], signal.SIGTERM)
        last = list(stream)[-1]
        assert last["meta_info"]["finish_reason"]["type"] == "abort"
        assert engine._client._processes[0].wait(20.0) == 0


def test_an_orphan_ends_itself(tiny: tuple[Path, Any]) -> None:
    package = Path(__file__).parents[2] / "python"
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, str(tiny[0])],
        env=os.environ | {"PYTHONPATH": str(package)},
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    wait_for_end(int(done.stdout.split()[0]))


def test_a_model_that_cannot_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NobodyForCausalLM"]}')
    with pytest.raises(EngineDead, match="NobodyForCausalLM"):
        start(tmp_path)


def test_an_idle_engine_sleeps_and_streams_when_woken(tiny: tuple[Path, Any]) -> None:
    with start(tiny[0]) as engine:
        whole = engine.generate(input_ids=PROMPTS[0], sampling_params=GREEDY)
        process = psutil.Process(engine._client.pids[0])
        before, begin = process.cpu_times(), time.monotonic()
        select.select([], [], [], 3.0)  # nothing happens: that is what is measured
        after, seconds = process.cpu_times(), time.monotonic() - begin
        used = after.user + after.system - before.user - before.system
        assert used < 0.01 * seconds + 0.02  # a hundredth of a core; the clock ticks in 0.01 s
        pieces = list(engine.generate(input_ids=PROMPTS[0], sampling_params=GREEDY, stream=True))
    lengths = [len(piece["token_ids"]) for piece in pieces]
    assert lengths == list(range(1, 11))
    assert pieces[-1]["token_ids"] == whole["token_ids"]


def test_bad_arguments_are_refused(tiny: tuple[Path, Any]) -> None:
    with start(tiny[0]) as engine:
        with pytest.raises(InvalidParameter, match="exactly one"):
            engine.generate("text", input_ids=[1])
        with pytest.raises(InvalidParameter, match="skip_tokenizer_init"):
            engine.generate("text")
        with pytest.raises(InvalidParameter, match="temprature"):
            engine.generate(input_ids=[5], sampling_params={"temprature": 1})
        with pytest.raises(InvalidParameter, match="3 entries for 2"):
            engine.generate(input_ids=[[5], [6]], sampling_params=[GREEDY] * 3)


def rank_processes(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
