"""The decode step as one kernel against float64, over poisoned pools."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.decode_steps import EPS, RAGGED, SIZES, SMALL, Step, Stored, check
from srt.batch import ForwardBatch, KvPool
from srt.core import native
from srt.ops.decode_step import DecodeStep, can_run

pytestmark = pytest.mark.gpu
if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)

PAGE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@pytest.mark.parametrize("name", SIZES)
def test_layers(name: str) -> None:
    torch.manual_seed(0)
    for lens in ((1,), (1025,), RAGGED):
        check(Step(SIZES[name], lens))


@pytest.mark.parametrize("rows", range(1, 9))
def test_rows_and_pages(rows: int) -> None:
    """Every number of rows meets four page sizes, two by each shape."""
    torch.manual_seed(rows)
    for i in range(2):
        few, many = (PAGE_SIZES[(rows + 2 * i + shift) % len(PAGE_SIZES)] for shift in (0, 5))
        check(Step(SMALL, RAGGED[:rows], few))
        check(Step(SIZES["odd"], RAGGED[-rows:], many, num_layers=1))


FORMS = {
    "e5m2": Stored(kv_format="fp8_e5m2"),
    "e5m2_scaled": Stored(kv_format="fp8_e5m2", kv_scales=(0.5, 3.0)),
    "e4m3": Stored(kv_format="fp8_e4m3", kv_scales=(0.07, 0.2)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SIZES)
def test_fp8_pools(name: str, form: str) -> None:
    torch.manual_seed(0)
    page_size = PAGE_SIZES[len(name + form) % len(PAGE_SIZES)]
    for lens in ((77,), RAGGED):
        check(Step(SIZES[name], lens, page_size, stored=FORMS[form]))


@pytest.mark.parametrize("rows", range(1, 9))
def test_rows_over_fp8_pools(rows: int) -> None:
    torch.manual_seed(rows)
    form = FORMS[list(FORMS)[rows % len(FORMS)]]
    check(Step(SMALL, RAGGED[:rows], 32, stored=form))
    check(Step(SIZES["odd"], RAGGED[-rows:], 4, num_layers=1, stored=form))


@pytest.mark.parametrize("length", [15, 16, 17, 127, 128, 129, 255, 257, 2047, 2049, 5000])
def test_lengths(length: int) -> None:
    torch.manual_seed(length)
    check(Step(SMALL, (length, 1)))


def test_many_layers_keep_their_order() -> None:
    """Phases hand over through three copies in turn: many layers and launches, one answer."""
    torch.manual_seed(0)
    check(Step(SIZES["Qwen2.5-0.5B"], (40, 700, 3), num_layers=24), repeats=50)


def test_launches_of_other_sizes_between() -> None:
    """What more rows, or longer sequences, leave in the workspace does not reach later launches."""
    torch.manual_seed(0)
    steps = [Step(SMALL, lens, num_layers=5) for lens in (RAGGED, (7,), RAGGED[1:3], (4000, 1))]
    shared = DecodeStep(steps[0].layers, steps[0].heads, EPS)
    wanted = [step.run() for step in steps]
    for i in (0, 1, 2, 3, 1, 0, 3, 2, 1, 1, 0):
        step = steps[i]
        shared._layers, shared._heads, shared._pool = tuple(step.layers), step.heads, None
        assert torch.equal(step.run(with_step=shared), wanted[i])


def test_rows_that_are_padding() -> None:
    """All padding rows read and write page 0; the others do not notice."""
    torch.manual_seed(0)
    step = Step(SMALL, (77, 1, 1, 1))
    alone = step.run()[:1]
    step.slots[1:] = step.slots[0] * 0
    step.table[1:4] = 0  # the rows of all but sequence 0
    assert torch.equal(step.run()[:1], alone)


def test_what_does_not_fit() -> None:
    step = Step(SMALL, (5,))
    assert not native.decode_step_fits((2, 576, 1536, 9, 3, 80))
    assert not native.decode_step_fits((2, 580, 1536, 9, 3, 64))
    assert not native.decode_step_fits((2, 576, 1536, 18, 2, 64))
    half = replace(step.layers[0], down=step.layers[0].down.half())
    assert not can_run([half], step.heads)


def test_a_graph_follows_the_device() -> None:
    """A captured step reads lengths and places anew."""
    torch.manual_seed(0)
    short, long = Step(SMALL, (5,)), Step(SMALL, (2000,))
    want = long.run()
    step = DecodeStep(long.layers, long.heads, EPS)
    long.table[0] = 0
    tensors = {"positions": [4], "slots": [0], "rows": [0], "seq_lens": [5]}
    ints = {k: torch.tensor(v, dtype=torch.int32).cuda() for k, v in tensors.items()}
    kv = KvPool(
        tuple(k.clone() for k, _ in long.pools),
        tuple(v.clone() for _, v in long.pools),
        16,
        "",
        (1.0, 1.0),
        (1.0, 1.0),
    )
    batch = ForwardBatch(
        num_tokens=1,
        num_seqs=1,
        num_decode=1,
        token_ids=ints["rows"],
        q_indptr=ints["rows"],
        page_table=long.table,
        logit_idx=ints["rows"],
        max_q_len=1,
        max_seq_len=2000,
        kv=kv,
        **ints,
    )
    x = short.x.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step.run(x, batch)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step.run(x, batch)
        for pair, own in zip(long.pools, zip(kv.k, kv.v, strict=True), strict=True):
            for old, new in zip(pair, own, strict=True):
                new.copy_(old)
        for name, value in {"positions": 1999, "rows": long.row(0), "seq_lens": 2000}.items():
            ints[name].fill_(value)
        ints["slots"].copy_(long.slots)
        x.copy_(long.x)
        graph.replay()
        stream.synchronize()
    assert torch.equal(x, want)
