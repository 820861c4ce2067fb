"""The decode step as one kernel against float64, over poisoned pools."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference import assert_as_good_as
from srt.batch import ForwardBatch, KvPool
from srt.core import native
from srt.ops.decode_step import DecodeStep, StepHeads, StepLayer, can_run

pytestmark = pytest.mark.gpu
if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)

BF16 = torch.bfloat16
EPS = 1e-5


@dataclass(frozen=True)
class Sizes:
    hidden: int
    intermediate: int
    heads: tuple[int, int]
    head_dim: int
    bias: bool = False


SMALL = Sizes(576, 1536, (9, 3), 64)
SIZES = {
    "SmolLM2": SMALL,
    "Qwen2.5-0.5B": Sizes(896, 4864, (14, 2), 64, bias=True),
    "Llama-3.2-1B": Sizes(2048, 8192, (32, 8), 64),
    "Llama-3-8B": Sizes(4096, 14336, (32, 8), 128),
    "odd": Sizes(1056, 1504, (24, 3), 128, bias=True),
    "wide": Sizes(2048, 4864, (8, 8), 64, bias=True),
}
RAGGED = (1, 3000, 128, 129, 2, 1000, 64, 255)


class Step:
    """Random layers and a pool in which what nobody may read is NaN."""

    def __init__(
        self, sizes: Sizes, lens: tuple[int, ...], page_size: int = 16, num_layers: int = 2
    ) -> None:
        self.sizes, self.lens, self.page_size = sizes, lens, page_size
        (hq, hk), d, hidden = sizes.heads, sizes.head_dim, sizes.hidden
        wide = (hq + 2 * hk) * d
        self.layers = [
            StepLayer(
                attn_norm=1 + 0.2 * draw(hidden),
                qkv=draw(wide, hidden) * hidden**-0.5,
                qkv_bias=draw(wide) if sizes.bias else None,
                o=draw(hidden, hq * d) * (hq * d) ** -0.5,
                mlp_norm=1 + 0.2 * draw(hidden),
                gate_up=draw(2 * sizes.intermediate, hidden) * hidden**-0.5,
                down=draw(hidden, sizes.intermediate) * sizes.intermediate**-0.5,
            )
            for _ in range(num_layers)
        ]
        angles = torch.outer(
            torch.arange(max(lens), dtype=torch.float64),
            10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d),
        )
        cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1).float().cuda()
        self.heads = StepHeads(hq, hk, d, cos_sin, d**-0.5)
        self.table, self.slots = self._scatter_pages()
        self.pools = [(self._pool(), self._pool()) for _ in range(num_layers)]
        self.x = draw(len(lens), hidden)

    def _scatter_pages(self) -> tuple[Tensor, Tensor]:
        counts = [-(-n // self.page_size) for n in self.lens]
        self.num_pages = sum(counts) + 3
        pages = (torch.randperm(self.num_pages - 1)[: sum(counts)] + 1).int()
        table = torch.full((len(self.lens) + 1, max(counts)), -1, dtype=torch.int32)
        slots = []
        for i, (n, own) in enumerate(zip(self.lens, pages.split(counts), strict=True)):
            table[self.row(i), : len(own)] = own
            slots.append(int(own[-1]) * self.page_size + (n - 1) % self.page_size)
        return table.cuda(), torch.tensor(slots, dtype=torch.int32).cuda()

    def row(self, i: int) -> int:
        """Sequence i's row of the page table."""
        return len(self.lens) - i

    def _pool(self) -> Tensor:
        """[pages, heads, page_size, head_dim]; tokens before the newest are drawn."""
        pool = draw(self.num_pages, self.sizes.heads[1], self.page_size, self.sizes.head_dim)
        seen = torch.zeros(self.num_pages, self.page_size, dtype=torch.bool)
        for i, n in enumerate(self.lens):
            token = torch.arange(n - 1)
            seen[self.table[self.row(i)].cpu()[token // self.page_size], token % self.page_size] = 1
        pool.transpose(1, 2)[~seen.cuda()] = float("nan")
        return pool

    def run(self, repeats: int = 1, with_step: DecodeStep | None = None) -> Tensor:
        """x after all layers; the pools take the new token."""
        ints = [torch.tensor(v, dtype=torch.int32).cuda() for v in self._int_lists()]
        positions, rows, lens, indptr = ints
        self.kv = KvPool(
            k=tuple(k.clone() for k, _ in self.pools),
            v=tuple(v.clone() for _, v in self.pools),
            page_size=self.page_size,
            kv_format="",
            k_scales=(1.0,) * len(self.pools),
            v_scales=(1.0,) * len(self.pools),
        )
        n = len(self.lens)
        batch = ForwardBatch(
            num_tokens=n,
            num_seqs=n,
            num_decode=n,
            token_ids=positions,
            positions=positions,
            slots=self.slots,
            rows=rows,
            q_indptr=indptr,
            seq_lens=lens,
            page_table=self.table,
            logit_idx=positions,
            max_q_len=1,
            max_seq_len=max(self.lens),
            kv=self.kv,
        )
        step = DecodeStep(self.layers, self.heads, EPS) if with_step is None else with_step
        assert can_run(self.layers, self.heads)
        assert step.takes(batch)
        outputs = []
        for _ in range(repeats):
            x = self.x.clone()
            step.run(x, batch)
            outputs.append(x)
        torch.cuda.synchronize()
        assert all(torch.equal(out, outputs[0]) for out in outputs)
        return outputs[0]

    def _int_lists(self) -> list[list[int]]:
        n = len(self.lens)
        rows = [self.row(i) for i in range(n)]
        return [[m - 1 for m in self.lens], rows, list(self.lens), list(range(n + 1))]

    def reference(self, *, rounds: bool) -> Tensor:
        """In float64; `rounds`: to bfloat16 wherever the separate kernels do."""

        def r(t: Tensor) -> Tensor:
            return t.to(BF16).double() if rounds else t

        def norm(x: Tensor, weight: Tensor) -> Tensor:
            scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
            return r(r(scaled) * weight.double())

        x = self.x.double()
        for layer, pools in zip(self.layers, self.pools, strict=True):
            qkv = norm(x, layer.attn_norm) @ layer.qkv.double().T
            if layer.qkv_bias is not None:
                qkv = qkv + layer.qkv_bias.double()
            attended = [r(self._attend(i, r(qkv)[i], pools, r)) for i in range(len(self.lens))]
            x = r(x + r(torch.stack(attended) @ layer.o.double().T))
            both = r(norm(x, layer.mlp_norm) @ layer.gate_up.double().T)
            gate, up = both.chunk(2, dim=-1)
            x = r(x + r(r(r(F.silu(gate)) * up) @ layer.down.double().T))
        return x

    def _attend(self, i: int, qkv: Tensor, pools: tuple[Tensor, Tensor], r) -> Tensor:  # type: ignore[no-untyped-def]
        (hq, hk), d, n = self.sizes.heads, self.sizes.head_dim, self.lens[i]
        q, k, v = qkv.view(-1, d).split([hq, hk, hk])
        cos, sin = self.heads.cos_sin[n - 1].double().chunk(2)

        def rotate(t: Tensor) -> Tensor:
            lo, hi = t.chunk(2, dim=-1)
            return r(torch.cat([lo * cos - hi * sin, hi * cos + lo * sin], dim=-1))

        pages = self.table[self.row(i), : -(-n // self.page_size)].long()
        keys, values = (
            torch.cat([p[pages].double().transpose(1, 2).reshape(-1, hk, d)[: n - 1], new[None]])
            for p, new in zip(pools, (rotate(k), v), strict=True)
        )
        scores = torch.einsum("kgd,nkd->kgn", rotate(q).view(hk, -1, d), keys) * self.heads.scale
        return torch.einsum("kgn,nkd->kgd", scores.softmax(-1), values).flatten()


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda").to(BF16)


def check(step: Step, repeats: int = 2) -> None:
    """Numbers, the same bits on each run, and only the new token's slots of the pools written."""
    out = step.run(repeats)
    assert_as_good_as(out, step.reference(rounds=True).to(BF16), step.reference(rounds=False))
    slots = step.slots.long()
    for before, after in zip(step.pools, zip(step.kv.k, step.kv.v, strict=True), strict=True):
        for old, new in zip(before, after, strict=True):
            written = (old.view(torch.int16) != new.view(torch.int16)).any(-1).transpose(1, 2)
            mine = torch.zeros_like(written)
            mine[slots // step.page_size, slots % step.page_size] = True
            assert torch.equal(written, mine)
            assert not new.transpose(1, 2)[mine].isnan().any()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("lens", [(1,), (1025,), RAGGED])
def test_layers(name: str, lens: tuple[int, ...]) -> None:
    torch.manual_seed(len(lens))
    check(Step(SIZES[name], lens))


@pytest.mark.parametrize("page_size", [1, 16, 64, 256])
@pytest.mark.parametrize("rows", range(1, 9))
def test_rows_and_pages(page_size: int, rows: int) -> None:
    torch.manual_seed(rows)
    check(Step(SMALL, RAGGED[:rows], page_size))
    check(Step(SIZES["odd"], RAGGED[-rows:], page_size, num_layers=1))


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
    for i in (0, 1, 2, 3, 1, 0, 3, 2, 1, 1, 0):
        step = steps[i]
        shared._layers, shared._heads, shared._pool = tuple(step.layers), step.heads, None
        out, want = step.run(with_step=shared), step.run()
        assert torch.equal(out, want)


def test_rows_that_are_padding() -> None:
    """All padding rows read and write page 0; the others do not notice."""
    torch.manual_seed(0)
    step = Step(SMALL, (77, 1, 1, 1))
    alone = step.run()[:1]
    step.slots[1:] = step.slots[0] * 0
    step.table[0] = 0
    assert torch.equal(step.run()[:1], alone)


def test_what_does_not_fit() -> None:
    step = Step(SMALL, (5,))
    assert not native.decode_step_fits((2, 576, 1536, 9, 3, 80))
    assert not native.decode_step_fits((2, 580, 1536, 9, 3, 64))
    assert not native.decode_step_fits((2, 576, 1536, 18, 2, 64))
    half = StepLayer(*(None if t is None else t.half() for t in step.layers[0].tensors()))
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
