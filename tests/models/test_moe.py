"""Experts: routing, and grouped GEMMs against one token at a time in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import REFERENCE_DEVICE, assert_as_good_as
from srt import ops
from srt.ops.fp8 import Fp8Rows, Rows, dequantize, quantize_groups, quantize_rows

HIDDEN, SIZE, NUM_EXPERTS, TOP_K = 64, 48, 8, 3
ROUTINGS: list[dict[str, Any]] = [
    {},
    {"norm_order": 1.0},
    {"norm_order": 2.0, "scale": 3.0},
    {"softcap": 2.0},
    {"num_groups": 4, "top_groups": 2, "scale": 16.0},
]


@dataclass
class Case:
    x: Tensor
    gate_up: Tensor
    down: Tensor
    weights: Tensor
    experts: Tensor

    def run(self) -> Tensor:
        args = (self.gate_up, self.down, self.weights, self.experts)
        return ops.experts_mlp(self.x, *args, "silu")

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

    weights, experts = ops.route(normal(num_tokens, NUM_EXPERTS), TOP_K, norm_order=1.0)
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


@pytest.mark.parametrize("options", ROUTINGS)
def test_routing_matches_plain_torch(options: dict[str, Any]) -> None:
    """Each family's rule, written out."""
    logits = 3 * torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    weights, experts = ops.route(logits, 3, **options)
    x = logits.double()
    if cap := options.get("softcap"):
        x = cap * torch.tanh(x / cap)
    probs = x.softmax(-1)
    if groups := options.get("num_groups"):
        by_group = probs.view(200, groups, -1)
        best = by_group.amax(-1).topk(options["top_groups"]).indices
        kept = torch.zeros(200, groups).scatter_(1, best, 1.0)
        probs = (by_group * kept.unsqueeze(-1)).flatten(1)
    ref, ref_experts = probs.topk(3)
    if order := options.get("norm_order"):
        ref = ref / ref.norm(p=order, dim=-1, keepdim=True)
    assert torch.equal(experts, ref_experts.int())
    torch.testing.assert_close(weights, (ref * options.get("scale", 1.0)).float())


def test_a_gated_shared_expert_is_added() -> None:
    case = make_case(9, torch.float32, "cpu")
    shared, gate = torch.randn(9, HIDDEN), torch.randn(9, 1)
    args = (case.gate_up, case.down, case.weights, case.experts, "silu")
    out = ops.experts_mlp(case.x, *args, shared, gate)
    ref = case.reference() + torch.sigmoid(gate).double() * shared.double()
    torch.testing.assert_close(out.double(), ref, rtol=1e-5, atol=1e-5)


def test_weights_are_renormalized_only_if_asked() -> None:
    logits = torch.randn(20, NUM_EXPERTS)
    kept, _ = ops.route(logits, TOP_K)
    scaled, _ = ops.route(logits, TOP_K, norm_order=1.0)
    assert (kept.sum(-1) < 1).all()
    torch.testing.assert_close(scaled.sum(-1), torch.ones(20))


def test_experts_come_from_the_best_groups() -> None:
    """Group scores are those of their best expert: here groups 0 and 3 of four."""
    logits = torch.tensor([[9.0, 0.0, 7.0, 7.0, 6.0, 6.0, 1.0, 8.0]])
    _, experts = ops.route(logits, 3, num_groups=4, top_groups=2)
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


@dataclass
class Layer:
    """Random experts on the GPU, with a gated shared one; matrices as `form` says."""

    form: str
    x: Tensor
    gate_up: Rows
    down: Rows
    shared: Tensor
    gate: Tensor
    weights: Tensor
    chosen: Tensor

    @classmethod
    def draw(
        cls, form: str, num_tokens: int, dtype: torch.dtype, sizes: tuple[int, int, int]
    ) -> Layer:
        hidden, size, experts = sizes
        generator = torch.Generator("cuda").manual_seed(num_tokens)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device="cuda")

        def matrices(*shape: int) -> Rows:
            values = normal(*shape) / shape[-1] ** 0.5
            if form == "wide":
                return values.to(dtype)
            values *= 2 ** normal(*shape[:2], 1)  # scales differ
            return Fp8Rows(*(quantize_rows if form == "fp8" else quantize_groups)(values))

        return cls(
            form,
            normal(num_tokens, hidden).to(dtype),
            matrices(experts, 2 * size, hidden),
            matrices(experts, hidden, size),
            normal(num_tokens, hidden).to(dtype),
            normal(num_tokens, 1).to(dtype),
            *ops.route(normal(num_tokens, experts), 2),
        )

    def run(self) -> Tensor:
        routed = (self.x, self.gate_up, self.down, self.weights, self.chosen, "gelu_tanh")
        return ops.experts_mlp(*routed, self.shared, self.gate)

    def plain(self, dtype: torch.dtype) -> Tensor:
        """One expert after the other in torch."""

        def here(value: Rows) -> Tensor:
            wide = value if isinstance(value, Tensor) else dequantize(*value, torch.float32)
            return wide.to(REFERENCE_DEVICE, dtype)

        x, gate_up, down = here(self.x), here(self.gate_up), here(self.down)
        weights, chosen = here(self.weights), self.chosen.to(REFERENCE_DEVICE)
        total = torch.sigmoid(here(self.gate)) * here(self.shared)
        for e in range(gate_up.shape[0]):
            rows, place = (chosen == e).nonzero(as_tuple=True)
            hidden_gate, hidden_up = (x[rows] @ gate_up[e].T).chunk(2, -1)
            inner = torch.nn.functional.gelu(hidden_gate, approximate="tanh") * hidden_up
            part = (inner @ down[e].T) * weights[rows, place, None]
            total.index_add_(0, rows, part)
        return total


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 200, 1500])
@pytest.mark.parametrize("sizes", [(64, 48, 8), (2048, 1408, 64), (72, 8, 3)])
def test_gpu_experts(num_tokens: int, dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    """Every tile shape, sizes that fill no tile, a gated shared expert; against float64."""
    layer = Layer.draw("wide", num_tokens, dtype, sizes)
    out = layer.run().to(REFERENCE_DEVICE)
    assert_as_good_as(out, layer.plain(dtype), layer.plain(torch.float64))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["fp8", "fp8_blocks"])
@pytest.mark.parametrize("num_tokens", [1, 7, 200, 1500])
@pytest.mark.parametrize("sizes", [(64, 48, 8), (2048, 1408, 16), (208, 336, 3)])
def test_gpu_experts_in_fp8(
    num_tokens: int, form: str, dtype: torch.dtype, sizes: tuple[int, int, int]
) -> None:
    """e4m3 weights with a scale a row and in blocks of 128, of which the last may be short."""
    layer = Layer.draw(form, num_tokens, dtype, sizes)
    out = layer.run().to(REFERENCE_DEVICE)
    assert_as_good_as(out, layer.plain(dtype), layer.plain(torch.float64))


@pytest.mark.parametrize("quantize", [quantize_rows, quantize_groups])
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_experts_in_fp8_on_the_cpu(
    num_tokens: int, quantize: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> None:
    """One token chooses three of eight experts, nine choose all or nearly all."""
    case = make_case(num_tokens, torch.float32, "cpu")
    stored = [Fp8Rows(*quantize(m)) for m in (case.gate_up, case.down)]
    out = ops.experts_mlp(case.x, *stored, case.weights, case.experts, "silu")
    case.gate_up, case.down = (dequantize(*m, torch.float32) for m in stored)
    torch.testing.assert_close(out.double(), case.reference(), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("options", ROUTINGS)
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (64, 6), (160, 6), (512, 8)])
def test_gpu_routes_as_the_cpu(num_experts: int, top_k: int, options: dict[str, Any]) -> None:
    """Ties included: bf16 logits of few digits."""
    generator = torch.Generator().manual_seed(num_experts)
    logits = torch.randn(300, num_experts, generator=generator).bfloat16()
    weights, experts = ops.route(logits, top_k, **options)
    gpu_weights, gpu_experts = ops.route(logits.cuda(), top_k, **options)
    torch.testing.assert_close(gpu_weights.cpu(), weights)
    assert torch.equal(gpu_experts.cpu(), experts)
