"""Recorded decode steps on the CPU: the same bits as steps run call by call, or no recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.driver import driver, greedy, random_prompts
from srt.core import native
from srt.engine.cpu_tape import MAX_BATCH, DecodeTapes
from srt.tiny import write_tiny


def test_tapes_change_no_token_and_no_logprob(tiny: tuple[Path, Any]) -> None:
    prompts = random_prompts(24, 60, 100)
    arrivals = [2 * i for i in range(len(prompts))]
    runs = []
    for eager in (False, True):
        with driver(tiny[0], disable_cuda_graph=eager) as d:
            runs.append(d.run(prompts, greedy(20), arrivals=arrivals, return_logprob=True))
            tapes = d.engine.worker.runner.tapes
            assert (tapes is None) == eager
            if tapes is not None:
                assert set(range(1, MAX_BATCH + 1)) & set(tapes.sizes)
    taped, eager_run = runs
    assert [o.tokens for o in taped] == [o.tokens for o in eager_run]
    assert [o.logprobs for o in taped] == [o.logprobs for o in eager_run]


@pytest.mark.parametrize("family", ["MixtralForCausalLM", "Qwen2MoeForCausalLM"])
def test_experts_are_recorded_too(tmp_path: Path, family: str) -> None:
    """A replay routes and sorts anew."""
    write_tiny(tmp_path, family)
    prompts = random_prompts(4, 40, 320)
    runs = []
    for eager in (False, True):
        with driver(tmp_path, disable_cuda_graph=eager) as d:
            runs.append([o.tokens for o in d.run(prompts, greedy(12))])
            tapes = d.engine.worker.runner.tapes
            assert tapes is None or tapes.sizes == [4]
    assert runs[0] == runs[1]


def test_a_step_with_torch_arithmetic_is_not_recorded() -> None:
    tapes, weight, x = DecodeTapes(), torch.randn(8, 8), torch.randn(1, 8)

    def forward() -> torch.Tensor:
        y = torch.empty(1, 8)
        native.cpu_linear(x, weight, None, y)
        return y * 2.0

    for _ in range(2):
        torch.testing.assert_close(tapes.logits(1, forward), 2.0 * x @ weight.T)
        x.add_(1.0)
    assert tapes.sizes == []


def test_a_replay_reads_what_stands_at_the_addresses() -> None:
    tapes, weight, x = DecodeTapes(), torch.randn(8, 8), torch.randn(1, 8)

    def forward() -> torch.Tensor:
        y = torch.empty(1, 8)
        native.cpu_linear(x.view(1, 8), weight, None, y)
        return y

    tapes.logits(1, forward)
    assert tapes.sizes == [1]
    x.add_(1.0)
    torch.testing.assert_close(tapes.logits(1, lambda: pytest.fail("ran again")), x @ weight.T)


def test_what_reads_the_message_cannot_be_taped() -> None:
    tape = native.CpuTape()
    tape.begin()
    try:
        with pytest.raises(native.InvalidArgument, match="tape"):
            native.cpu_token_logprobs(
                torch.zeros(1, 4), torch.zeros(1, dtype=torch.int32), torch.empty(1)
            )
        with pytest.raises(native.InvalidArgument, match="already"):
            native.CpuTape().begin()
    finally:
        tape.end()
    with pytest.raises(native.InvalidArgument, match="does not record"):
        tape.end()


def test_a_tape_stops_at_a_token_outside_the_vocabulary() -> None:
    ids, out = torch.tensor([1], dtype=torch.int32), torch.empty(1, 4)
    tape = native.CpuTape()
    tape.begin()
    native.cpu_embedding(ids, torch.zeros(3, 4), out)
    tape.end()
    ids[0] = 3
    with pytest.raises(native.InvalidArgument, match="vocabulary"):
        tape.replay()
