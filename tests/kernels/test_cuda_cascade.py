"""CUDA decode attention over shared prefixes: against float64, and against reading them apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.test_cuda_decode import OFF_WORK, Case, attend, check_fp8_out, launch, make_inputs
from reference import assert_as_good_as
from srt.core import native

pytestmark = pytest.mark.gpu
if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)


def shared_case(case: Case, sizes: tuple[int, ...] = (3, 20, 7, 65), tokens: int = 700) -> Case:
    """`case` with groups of these sizes and loners, interleaved, over prefixes of odd lengths.

    Long enough that sharing pays: the fewer the KV heads, the longer.
    """
    tokens *= {1: 8, 2: 4}.get(case.heads[1], 1)
    prefixes = [(tokens + 300 * g) // case.page_size for g in range(len(sizes))]
    order = [g for g, size in enumerate(sizes) for _ in range(size)] + [-1, -1, -1]
    order = [order[i] for i in torch.randperm(len(order), generator=torch.Generator())]
    tails = [1, 2, 15, 16, 17, 100, 257]
    pages = [prefixes[g] if g >= 0 else 0 for g in order]
    lens = [n * case.page_size + tails[i % len(tails)] for i, n in enumerate(pages)]
    return replace(case, lens=tuple(lens), groups=tuple(order), prefix_pages=tuple(pages))


def check(case: Case, *, pdl: bool = False) -> None:
    inputs = make_inputs(case)
    out = launch(case, inputs, pdl=pdl, share=True)
    count = len(case.lens)
    assert (out[count:] == 0).all()
    naive, ref64 = attend(case, inputs, case.dtype), attend(case, inputs, torch.float64)
    assert_as_good_as(out[:count], naive, ref64)
    apart = launch(case, inputs)
    assert_as_good_as(out[:count], apart[:count], ref64)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("heads", [(32, 8), (14, 2), (8, 8), (16, 1), (9, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_heads(heads: tuple[int, int], head_dim: int, dtype: torch.dtype) -> None:
    check(shared_case(Case(heads=heads, head_dim=head_dim, dtype=dtype, padding=3)))


@pytest.mark.parametrize("page_size", [1, 8, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_page_sizes(page_size: int, head_dim: int) -> None:
    check(shared_case(Case(page_size=page_size, head_dim=head_dim)))


@pytest.mark.parametrize("kv_format", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("heads", [(14, 2), (16, 1)], ids=str)
def test_fp8_pools(heads: tuple[int, int], head_dim: int, kv_format: str) -> None:
    check(shared_case(Case(heads=heads, head_dim=head_dim, kv_format=kv_format, page_size=8)))


@pytest.mark.parametrize("kv_format", ["", "fp8_e5m2"])
@pytest.mark.parametrize("heads", [(32, 8), (14, 2)], ids=str)
def test_fp8_out(heads: tuple[int, int], kv_format: str) -> None:
    case = Case(heads=heads, kv_format=kv_format, page_size=8, padding=3)
    check_fp8_out(shared_case(case), share=True)


def test_softcap_and_sharp_scores() -> None:
    check(shared_case(Case(softcap=20.0, q_scale=6.0)))
    check(shared_case(Case(q_scale=10.0)))


def test_windows_read_apart() -> None:
    check(shared_case(Case(window_left=500)))


def test_one_long_prefix() -> None:
    check(shared_case(Case(heads=(14, 2), head_dim=64), (150,), 2200), pdl=True)


def test_many_small_groups() -> None:
    check(shared_case(Case(), (3,) * 40, 600))


def test_programmatic_launch() -> None:
    check(shared_case(Case()), pdl=True)


def test_a_graph_shares_and_stops_sharing() -> None:
    case = shared_case(Case(), (12, 5), 2500)
    inputs = make_inputs(case)
    grid = native.DecodeGrid(*case.heads, case.head_dim)
    device_message = torch.zeros(1 << 16, dtype=torch.int32, device="cuda")
    workspace = torch.zeros(grid.workspace_bytes, dtype=torch.uint8, device="cuda")
    out = torch.zeros_like(inputs.q, memory_format=torch.contiguous_format)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        native.cuda_decode_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            inputs.page_table,
            device_message,
            workspace,
            out,
            scale=case.head_dim**-0.5,
            stream=torch.cuda.current_stream().cuda_stream,
        )
    naive, ref64 = attend(case, inputs, case.dtype), attend(case, inputs, torch.float64)
    nobody = [-1] * len(case.lens)
    for groups in (case.groups, nobody, case.groups):
        message = inputs.message.clone()
        prefixes = np.array(groups, np.int32), np.array(case.prefix_pages, np.int32)
        words = native.plan_decode(message, [(grid, -1)], *prefixes, case.page_size) // 4
        assert (message[message[OFF_WORK] + 10] != 0) == (groups != nobody)
        device_message[:words].copy_(message[:words])
        out.fill_(torch.nan)
        graph.replay()
        assert_as_good_as(out, naive, ref64)
