"""Sums over ranks by our own kernels; the ranks are streams of one process on one GPU."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.peer_sums import in_rank_order
from kernels.test_ops_norm import rms_norm64
from reference import assert_as_good_as
from srt.core import native
from srt.ops import fp8, reference

pytestmark = pytest.mark.gpu
if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)

DTYPES = (torch.bfloat16, torch.float16)
EPS = 1e-5
BLOCKS = 8  # a rank: those of 8 ranks run at once on one GPU, and longer messages take turns


class Ranks:
    """`size` ranks, a stream each."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.peers = [native.Peers(0, rank, size, BLOCKS) for rank in range(size)]
        inboxes = [peers.inbox for peers in self.peers]
        for peers in self.peers:
            peers.connect_here(inboxes)
        self.streams = [torch.cuda.Stream() for _ in range(size)]

    def run(self, call: Callable[[int, native.Peers, int], None]) -> None:
        """`call(rank, peers, stream)` on every rank. It allocates nothing: that could wait."""
        torch.cuda.synchronize()
        self.launch(call)
        torch.cuda.synchronize()

    def launch(self, call: Callable[[int, native.Peers, int], None]) -> None:
        """The same without waiting."""
        for rank, (peers, stream) in enumerate(zip(self.peers, self.streams, strict=True)):
            with torch.cuda.stream(stream):
                call(rank, peers, stream.cuda_stream)

    def close(self) -> None:
        """Lets go of the inboxes."""
        torch.cuda.synchronize()
        for peers in self.peers:
            peers.close()


@pytest.fixture(scope="module", params=[2, 4, 8])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    made = Ranks(request.param)
    yield made
    made.close()


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


@pytest.mark.parametrize("two_shots", [False, True])
@pytest.mark.parametrize("count", [0, 8, 264, 4096, 4104, 8 * 4096 * BLOCKS - 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_reduce(ranks: Ranks, dtype: torch.dtype, count: int, two_shots: bool) -> None:
    x = draw(ranks.size, count, dtype=dtype)
    out = torch.full_like(x, float("nan"))
    ranks.run(lambda r, peers, stream: peers.all_reduce(x[r], out[r], two_shots, True, stream))
    expected = in_rank_order(x)
    for rank in range(ranks.size):
        assert torch.equal(out[rank], expected)
    assert_as_good_as(out[0], x.sum(0), x.double().sum(0))


@pytest.mark.parametrize("width", [8, 64, 4104])
@pytest.mark.parametrize("rows", [0, 1, 3, 70])
def test_all_gather(ranks: Ranks, rows: int, width: int) -> None:
    x = draw(ranks.size, rows, width, dtype=torch.bfloat16)
    out = torch.full((ranks.size, rows, ranks.size * width), float("nan"), device="cuda").bfloat16()
    ranks.run(lambda r, peers, stream: peers.all_gather(x[r], out[r], True, stream))
    for rank in range(ranks.size):
        assert torch.equal(out[rank], torch.cat(list(x), dim=1))


@pytest.mark.parametrize("two_shots", [False, True])
@pytest.mark.parametrize("hidden", [8, 256, 2048, 4096, 4104, 8192])
@pytest.mark.parametrize("rows", [0, 1, 7, BLOCKS + 1, 4 * BLOCKS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_reduce_norm(
    ranks: Ranks, dtype: torch.dtype, rows: int, hidden: int, two_shots: bool
) -> None:
    x = draw(ranks.size, rows, hidden, dtype=dtype)
    residual = draw(rows, hidden, dtype=dtype)
    weight = draw(hidden, dtype=dtype)
    residuals = residual.repeat(ranks.size, 1, 1)
    out = torch.full_like(x, float("nan"))

    def call(r: int, peers: native.Peers, stream: int) -> None:
        args = (x[r], weight, None, residuals[r], out[r], None, EPS, 0.0, False, True, stream)
        peers.all_reduce_norm(*args, two_shots=two_shots)

    ranks.run(call)
    naive = reference.add_rms_norm(in_rank_order(x), residual, weight, EPS)
    for rank in range(ranks.size):
        assert torch.equal(residuals[rank], residual)
        assert torch.equal(out[rank], out[0])
    assert_as_good_as(out[0], naive, rms_norm64(residual, weight, EPS, 0.0))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", ["token", "group", "tensor", "layer norm"])
def test_what_else_the_norm_does(ranks: Ranks, kind: str, residual: bool) -> None:
    """In fp8 and as LayerNorm: what the norm alone makes of the sum, bit by bit."""
    rows, hidden = 5, 1024
    x = draw(ranks.size, rows, hidden, dtype=torch.bfloat16)
    weight, bias = draw(2, hidden, dtype=torch.bfloat16)
    stream_rows = draw(rows, hidden, dtype=torch.bfloat16)
    residuals = stream_rows.repeat(ranks.size, 1, 1)
    given = torch.full((1,), 0.02, device="cuda") if kind == "tensor" else None
    in_fp8 = kind != "layer norm"
    centered, extra = not in_fp8, None if in_fp8 else bias

    def target() -> tuple[Tensor, Tensor | None]:
        if not in_fp8:
            return torch.full_like(stream_rows, float("nan")), None
        out, scales = fp8.cuda.fp8_target((rows, hidden), x.device, kind)
        return out.view(torch.uint8), scales

    def options(stream: int) -> dict[str, object]:
        return {"pdl": True, "stream": stream, "given": given}

    made = [target() for _ in range(ranks.size)]

    def call(r: int, peers: native.Peers, stream: int) -> None:
        out, scales = made[r]
        added = residuals[r] if residual else None
        peers.all_reduce_norm(
            x[r], weight, extra, added, out, scales, EPS, 0.0, centered, **options(stream)
        )

    ranks.run(call)
    expected, expected_scales = target()
    native.cuda_norm(
        in_rank_order(x),
        weight,
        extra,
        stream_rows if residual else None,
        expected,
        expected_scales,
        EPS,
        0.0,
        centered,
        **options(torch.cuda.current_stream().cuda_stream),
    )
    for out, scales in made:
        assert torch.equal(out, expected)
        assert (scales is None) == (expected_scales is None)
        if scales is not None and expected_scales is not None:
            assert torch.equal(scales, expected_scales)


@dataclass(frozen=True)
class Round:
    """One of many calls. late: cycles that each rank sleeps before it."""

    shape: tuple[int, int]
    two_shots: bool
    with_norm: bool
    late: list[int]


def make_rounds(num_ranks: int, count: int) -> list[Round]:
    rng = random.Random(num_ranks)
    return [
        Round(
            shape=(rng.choice([1, 3, 8, 9, 20]), rng.choice([256, 1032, 4096])),
            two_shots=rng.random() < 0.5,
            with_norm=rng.random() < 0.5,
            late=[rng.choice([0, 0, 0, 20_000, 60_000]) for _ in range(num_ranks)],
        )
        for _ in range(count)
    ]


def test_many_rounds_with_ranks_that_are_late(ranks: Ranks) -> None:
    """Messages of all sizes, one behind the other, while ranks fall behind at random."""
    torch.cuda._sleep(1)  # loads it now: loading waits for kernels, which wait for other ranks
    rounds = make_rounds(ranks.size, 300)
    x = draw(ranks.size, 20 * 4096, dtype=torch.bfloat16)
    weight = draw(4096, dtype=torch.bfloat16)
    inputs = [
        x[:, : rows * hidden].view(-1, rows, hidden) for rows, hidden in (r.shape for r in rounds)
    ]
    outs = [torch.full_like(part, float("nan")) for part in inputs]

    def call(i: int, r: int, peers: native.Peers, stream: int) -> None:
        now, part, out = rounds[i], inputs[i][r], outs[i][r]
        if now.late[r]:
            torch.cuda._sleep(now.late[r])
        if not now.with_norm:
            peers.all_reduce(part, out, now.two_shots, False, stream)
            return
        scale = weight[: part.shape[1]]
        args = (part, scale, None, None, out, None, EPS, 0.0, False, False, stream)
        peers.all_reduce_norm(*args, two_shots=now.two_shots)

    torch.cuda.synchronize()
    for i in range(len(rounds)):
        ranks.run(partial(call, i))
    for i, (now, part, out) in enumerate(zip(rounds, inputs, outs, strict=True)):
        expected = in_rank_order(part)
        if now.with_norm:
            scale = weight[: part.shape[2]]
            naive = reference.rms_norm(expected, scale, EPS)
            assert_as_good_as(out[0], naive, rms_norm64(expected, scale, EPS, 0.0))
            expected = out[0]
        for rank in range(ranks.size):
            assert torch.equal(out[rank], expected), f"call {i}, rank {rank}"


def test_arguments_are_checked() -> None:
    alone = native.Peers(0, 0, 2)
    x, weight = draw(2, 8, 64, dtype=torch.bfloat16), draw(64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="not connected"):
        alone.all_reduce(x[0], x[0], False, False, 0)
    with pytest.raises(ValueError, match="handles must be one a rank"):
        alone.connect([bytes(64)])
    with pytest.raises(ValueError, match="a handle must have 64 bytes"):
        alone.connect([bytes(64), bytes(63)])
    with pytest.raises(ValueError, match="inboxes must be one a rank"):
        alone.connect_here([alone.inbox])
    alone.connect_here([alone.inbox, alone.inbox])
    with pytest.raises(ValueError, match="closed or connected"):
        alone.connect([bytes(64), bytes(64)])
    wrong = {
        "x must be float16 or bfloat16": (x[0].float(), x[0].float()),
        "x must be contiguous on the device": (x[0, :, 8:40], x[0, :, 8:40]),
        "x must have a multiple of 8 elements": (x[0].flatten()[:4], x[0].flatten()[:4]),
        "out must be contiguous on the device with the dtype of x": (x[0], x[0].half()),
        "out has the wrong number of elements": (x[0], x[0, :4]),
    }
    for message, (part, out) in wrong.items():
        with pytest.raises(ValueError, match=message):
            alone.all_reduce(part, out, False, False, 0)
    with pytest.raises(ValueError, match="x must be a multiple of 8 wide"):
        alone.all_gather(x[0, :, :4].contiguous(), x[0], False, 0)
    with pytest.raises(ValueError, match="out must have as many rows"):
        alone.all_gather(x[0], x[0, :4], False, 0)
    with pytest.raises(ValueError, match="out has the wrong number of elements"):
        alone.all_gather(x[0], x[0], False, 0)
    wide = draw(1, 8200, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="at most 8192 values"):
        alone.all_reduce_norm(wide, wide[0], None, None, wide, None, EPS, 0.0, False, False, 0)
    with pytest.raises(ValueError, match="weight has the wrong number"):
        alone.all_reduce_norm(x[0], weight[:8], None, None, x[0], None, EPS, 0.0, False, False, 0)
    alone.close()
    with pytest.raises(ValueError, match="closed"):
        alone.handle()
