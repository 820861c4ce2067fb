"""Experts: routing, and grouped GEMMs against one token at a time in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from srt import ops
from srt.ops.moe import experts_mlp, route

HIDDEN, SIZE, NUM_EXPERTS, TOP_K = 64, 48, 8, 3


@dataclass
class Case:
    x: Tensor
    gate_up: Tensor
    down: Tensor
    weights: Tensor
    experts: Tensor

    def run(self) -> Tensor:
        args = (self.gate_up, self.down, self.weights, self.experts)
        return experts_mlp(self.x, *args, ops.silu_and_mul)

    def reference(self) -> Tensor:
        """float64 [T, H]."""
        out = torch.zeros_like(self.x, dtype=torch.float64)
        for t in range(self.x.shape[0]):
            for weight, e in zip(self.weights[t], self.experts[t].tolist(), strict=True):
                gate, up = (self.gate_up[e].double() @ self.x[t].double()).chunk(2)
                hidden = torch.nn.functional.silu(gate) * up
                out[t] += weight.double() * (self.down[e].double() @ hidden)
        return out


def make_case(num_tokens: int, dtype: torch.dtype, device: str) -> Case:
    generator = torch.Generator().manual_seed(num_tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights, experts = route(normal(num_tokens, NUM_EXPERTS), TOP_K, renormalize=True)
    gate_up = normal(NUM_EXPERTS, 2 * SIZE, HIDDEN) / HIDDEN**0.5
    down = normal(NUM_EXPERTS, HIDDEN, SIZE) / SIZE**0.5
    floats = (normal(num_tokens, HIDDEN), gate_up, down)
    x, gate_up, down = (value.to(device, dtype) for value in floats)
    return Case(x, gate_up, down, weights.to(device), experts.to(device))


@pytest.mark.parametrize("num_tokens", [1, 2, 33])
def test_grouped_experts_match_a_plain_loop(num_tokens: int) -> None:
    case = make_case(num_tokens, torch.float32, "cpu")
    torch.testing.assert_close(case.run().double(), case.reference(), rtol=1e-5, atol=1e-5)


def test_one_expert_takes_all_tokens() -> None:
    """The other groups are empty."""
    case = make_case(17, torch.float32, "cpu")
    case.experts[:] = torch.tensor([5, 2, 7])
    torch.testing.assert_close(case.run().double(), case.reference(), rtol=1e-5, atol=1e-5)


def test_weights_are_renormalized_only_if_asked() -> None:
    logits = torch.randn(20, NUM_EXPERTS)
    kept, _ = route(logits, TOP_K, renormalize=False)
    scaled, _ = route(logits, TOP_K, renormalize=True)
    assert (kept.sum(-1) < 1).all()
    torch.testing.assert_close(scaled.sum(-1), torch.ones(20))


def test_experts_come_from_the_best_groups() -> None:
    """Group scores are those of their best expert: here groups 0 and 3 of four."""
    logits = torch.tensor([[9.0, 0.0, 7.0, 7.0, 6.0, 6.0, 1.0, 8.0]])
    _, experts = route(logits, 3, renormalize=False, num_groups=4, top_groups=2)
    assert sorted(experts[0].tolist()) == [0, 6, 7]


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 33, 300])
def test_gpu_experts_replay_in_a_graph(num_tokens: int) -> None:
    """bfloat16 on CUDA, captured once and replayed with other values."""
    case = make_case(num_tokens, torch.bfloat16, "cuda")
    ref = case.reference()
    out = case.run()
    assert (out.double() - ref).abs().max() < 2e-2 * ref.abs().max()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        case.run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.run()
    case.x.neg_()
    case.experts.copy_(case.experts.flip(0))
    graph.replay()
    assert torch.equal(captured, case.run())
