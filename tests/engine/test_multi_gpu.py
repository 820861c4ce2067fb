"""Two GPUs: ranks that share a model, and copies side by side; greedy tokens, and how they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.test_gpu_engine import SHAPES, SMALL_POOL, Judge, make_prompts
from engine.test_process import rank_processes, wait_for_end
from srt.errors import EngineDead, InternalServerError
from srt.llm import Engine
from srt.tiny import write_tiny

pytestmark = pytest.mark.multi_gpu

VARIANTS: dict[str, dict[str, Any]] = {
    "tp": {"tp_size": 2},
    "tp_no_graph": {"tp_size": 2, "disable_cuda_graph": True, "page_size": 1},
    "tp_few_by_nccl": {
        "tp_size": 2,
        "max_running_requests": 6,
        "chunked_prefill_size": 64,
        "disable_custom_all_reduce": True,
    },
    "tp_retraction": {"tp_size": 2, "max_total_tokens": 1536, "schedule_conservativeness": 0.01},
    "dp": {"dp_size": 2},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("wide")
    write_tiny(folder, dtype=torch.bfloat16, eos_token_id=None, **SHAPES["wide"])
    return folder


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> Judge:
    """The reference of the module's checkpoint."""
    return Judge(checkpoint)


def run(checkpoint: Path, **settings: Any) -> tuple[list[list[int]], list[list[int]], Any]:
    """Prompts, what is generated for them in the second of two rounds, and the engine's state."""
    prompts = make_prompts(24)
    params = {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}
    settings = {"max_running_requests": 16, **SMALL_POOL, **settings}
    with Engine(
        model_path=str(checkpoint), skip_tokenizer_init=True, random_seed=0, **settings
    ) as engine:
        for _ in range(2):  # the second round hits the prefix cache
            results = engine.generate(input_ids=prompts, sampling_params=params)
        state = engine.state()
        table = dict(engine._client._ready[0].result().table)
        processes = engine._client._processes
    assert [p.wait(0) for p in processes] == [0] * len(processes)  # ended by themselves
    by_nccl = "disable_custom_all_reduce" in settings
    if settings.get("tp_size") == 2:
        assert table["sums over ranks"].startswith("NCCL (--" if by_nccl else "peer-to-peer")
    return prompts, [r["token_ids"] for r in results], state


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_greedy_tokens_are_the_models(checkpoint: Path, judge: Judge, variant: str) -> None:
    prompts, outputs, state = run(checkpoint, **VARIANTS[variant])
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output) == 40
        gap, allowed = judge.worst_gap(prompt, output)
        assert gap <= allowed
    assert len(state) == (2 if variant == "dp" else 1)
    if variant == "tp_retraction":
        assert state[0]["num_retracted"] > 0


def test_a_killed_rank_ends_the_other(checkpoint: Path) -> None:
    """Whose kernels wait for messages that do not come."""
    settings = {"max_running_requests": 4, "skip_tokenizer_init": True, **SMALL_POOL}
    with Engine(model_path=str(checkpoint), tp_size=2, **settings) as engine:
        endless = {"temperature": 0, "max_new_tokens": 1900, "ignore_eos": True}
        stream = engine.generate(input_ids=[5, 6, 7], sampling_params=endless, stream=True)
        next(stream)
        first, second = rank_processes(engine._client.pids[0])
        second.kill()
        with pytest.raises((EngineDead, InternalServerError)):
            list(stream)
        wait_for_end(first.pid)


def test_fp8_weights_over_two_ranks(checkpoint: Path, judge: Judge) -> None:
    """Quantized while loading: the ranks' tokens err as those of one rank do."""
    prompts, outputs, _ = run(checkpoint, tp_size=2, quantization="fp8", kv_cache_dtype="fp8_e5m2")
    alone = run(checkpoint, quantization="fp8", kv_cache_dtype="fp8_e5m2")[1]

    def mean_gap(found: list[list[int]]) -> float:
        gaps = [judge.worst_gap(p, o)[0] for p, o in zip(prompts, found, strict=True)]
        return sum(gaps) / len(gaps)

    assert mean_gap(outputs) <= 1.5 * mean_gap(alone) + 0.05
