"""Decode steps for tests: random layers over poisoned pools, and the same in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from reference import REFERENCE_DEVICE, assert_as_good_as
from srt.batch import ForwardBatch, KvPool
from srt.ops.decode_step import DecodeStep, StepHeads, StepLayer, can_run

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
BIG = 50_000_000  # values of a layer's matrices from which on all layers share them


@dataclass(frozen=True)
class Stored:
    """How the pool is stored; kv_scales: of K and V."""

    kv_format: str = ""
    kv_scales: tuple[float, float] = (1.0, 1.0)

    @property
    def kv_dtype(self) -> torch.dtype:
        return KV_DTYPES[self.kv_format]


KV_DTYPES = {"": BF16, "fp8_e5m2": torch.float8_e5m2, "fp8_e4m3": torch.float8_e4m3fn}
WIDE = Stored()
FP8_NAN = 0x7F  # in both formats


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda").to(BF16)


def draw_matrix(out_size: int, in_size: int) -> Tensor:
    return draw(out_size, in_size) * in_size**-0.5


@lru_cache(maxsize=2)
def draw_layers(sizes: Sizes, num_layers: int) -> tuple[StepLayer, ...]:
    """Layers that tests share; where they are big, only norms and biases differ."""
    (hq, hk), d, hidden, width = sizes.heads, sizes.head_dim, sizes.hidden, sizes.intermediate
    wide = (hq + 2 * hk) * d
    layers: list[StepLayer] = []
    for _ in range(num_layers):
        first = layers[0] if layers and hidden * (wide + hq * d + 3 * width) >= BIG else None
        layers.append(
            StepLayer(
                attn_norm=1 + 0.2 * draw(hidden),
                qkv=first.qkv if first else draw_matrix(wide, hidden),
                qkv_bias=draw(wide) if sizes.bias else None,
                o=first.o if first else draw_matrix(hidden, hq * d),
                mlp_norm=1 + 0.2 * draw(hidden),
                gate_up=first.gate_up if first else draw_matrix(2 * width, hidden),
                down=first.down if first else draw_matrix(hidden, width),
            )
        )
    return tuple(layers)


class Step:
    """A step of one new token a sequence over a pool in which what nobody may read is NaN.

    Attributes:
        slots, table: where the new tokens go; sequence i has row `row(i)` of the table.
        pools: K and V of each layer as they were before the step.
        kv: what the last run left of them.
    """

    def __init__(
        self,
        sizes: Sizes,
        lens: tuple[int, ...],
        page_size: int = 16,
        num_layers: int = 2,
        stored: Stored = WIDE,
    ) -> None:
        self.sizes, self.lens, self.page_size, self.stored = sizes, lens, page_size, stored
        (hq, hk), d = sizes.heads, sizes.head_dim
        self.layers = draw_layers(sizes, num_layers)
        angles = torch.outer(
            torch.arange(max(lens), dtype=torch.float64, device="cuda"),
            10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64, device="cuda") / d),
        )
        cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1).float()
        self.heads = StepHeads(hq, hk, d, cos_sin, d**-0.5)
        self.table, self.slots = self._scatter_pages()
        hidden_slots = self._hidden_slots()
        self.pools = [
            (self._pool(hidden_slots), self._pool(hidden_slots)) for _ in range(num_layers)
        ]
        self.x = draw(len(lens), sizes.hidden)

    def row(self, i: int) -> int:
        """Sequence i's row of the page table."""
        return len(self.lens) - i

    def _scatter_pages(self) -> tuple[Tensor, Tensor]:
        counts = [-(-n // self.page_size) for n in self.lens]
        self.num_pages = sum(counts) + 3
        pages = (torch.randperm(self.num_pages - 1)[: sum(counts)] + 1).int()
        table = torch.full((len(self.lens) + 1, max(counts)), -1, dtype=torch.int32)
        slots = []
        for i, (n, own) in enumerate(zip(self.lens, pages.split(counts), strict=True)):
            table[self.row(i), : len(own)] = own
            slots.append(int(own[-1]) * self.page_size + (n - 1) % self.page_size)
        return table.cuda(), torch.tensor(slots, dtype=torch.int32, device="cuda")

    def _hidden_slots(self) -> Tensor:
        """Bool [pages, page_size]: where no token before the newest lies."""
        hidden = torch.ones(self.num_pages, self.page_size, dtype=torch.bool)
        table = self.table.cpu()
        for i, n in enumerate(self.lens):
            token = torch.arange(n - 1)
            hidden[table[self.row(i)][token // self.page_size], token % self.page_size] = False
        return hidden.cuda()

    def _pool(self, hidden_slots: Tensor) -> Tensor:
        """[pages, heads, page_size, head_dim]; tokens before the newest are drawn."""
        pool = draw(self.num_pages, self.sizes.heads[1], self.page_size, self.sizes.head_dim)
        mask = hidden_slots[:, None, :, None]
        if self.stored.kv_format == "":
            return pool.masked_fill_(mask, float("nan"))
        return pool.to(self.stored.kv_dtype).view(torch.uint8).masked_fill_(mask, FP8_NAN)

    def values_of(self, pool: Tensor, scale: float) -> Tensor:
        """In float64, where references are computed, what values of a pool stand for."""
        return here(pool.view(self.stored.kv_dtype)) * scale

    def run(self, repeats: int = 1, with_step: DecodeStep | None = None) -> Tensor:
        """x after all layers; the pools take the new token."""
        n = len(self.lens)
        lists = [
            [m - 1 for m in self.lens],
            [self.row(i) for i in range(n)],
            list(self.lens),
            list(range(n + 1)),
        ]
        ints = [torch.tensor(v, dtype=torch.int32, device="cuda") for v in lists]
        positions, rows, lens, indptr = ints
        self.kv = KvPool(
            k=tuple(k.clone() for k, _ in self.pools),
            v=tuple(v.clone() for _, v in self.pools),
            page_size=self.page_size,
            kv_format=self.stored.kv_format,
            k_scales=self.stored.kv_scales[:1] * len(self.pools),
            v_scales=self.stored.kv_scales[1:] * len(self.pools),
        )
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
        step = with_step or DecodeStep(self.layers, self.heads, EPS)
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

    def written(self) -> Iterator[tuple[Tensor, Tensor]]:
        """By layer and tensor (K, V): bool [pages, page_size, heads], what the last run changed;
        and the values that it left in the new tokens' slots, [B, heads, head_dim].
        """
        slots = self.slots.long()
        after = zip(self.kv.k, self.kv.v, strict=True)
        for old_pair, new_pair in zip(self.pools, after, strict=True):
            for old, new in zip(old_pair, new_pair, strict=True):
                changed = (old.view(torch.uint8) != new.view(torch.uint8)).any(-1)
                values = new.transpose(1, 2)[slots // self.page_size, slots % self.page_size]
                yield changed.transpose(1, 2), values


def rounded(t: Tensor) -> Tensor:
    """[2, ...] in float64: the first half as bfloat16 has it, the second exact."""
    return torch.stack([t[0].to(BF16).double(), t[1]])


class Reference:
    """A step that has run, in float64 and twice at once: dimension 0 of all tensors is (rounded to
    bfloat16 wherever the separate kernels round, exact). Over fp8 pools both go on with the new
    token as the step stored it: a value on the other side of its rounding moves the whole row.

    Attributes:
        x: [2, B, hidden] after all layers.
        new: by layer and tensor (K, V), [2, B, heads, head_dim] of the new tokens, not quantized.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.new: list[Tensor] = []
        self.stored = [values for _, values in step.written()]
        x = here(step.x).expand(2, -1, -1)
        for layer, pools in zip(step.layers, step.pools, strict=True):
            qkv = self._norm(x, layer.attn_norm) @ here(layer.qkv).T
            if layer.qkv_bias is not None:
                qkv = qkv + here(layer.qkv_bias)
            attended = self._attend(rounded(qkv), pools)
            x = rounded(x + rounded(attended @ here(layer.o).T))
            both = rounded(self._norm(x, layer.mlp_norm) @ here(layer.gate_up).T)
            gate, up = both.chunk(2, dim=-1)
            act = rounded(rounded(F.silu(gate)) * up)
            x = rounded(x + rounded(act @ here(layer.down).T))
        self.x = x

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
        return rounded(rounded(scaled) * here(weight))

    def _attend(self, qkv: Tensor, pools: tuple[Tensor, Tensor]) -> Tensor:
        (hq, hk), d = self.step.sizes.heads, self.step.sizes.head_dim
        q, k, v = qkv.unflatten(-1, (-1, d)).split([hq, hk, hk], dim=2)
        lens = torch.tensor(self.step.lens, device=qkv.device)
        cos, sin = here(self.step.heads.cos_sin)[lens - 1].unsqueeze(1).chunk(2, dim=-1)

        def rotate(t: Tensor) -> Tensor:
            lo, hi = t.chunk(2, dim=-1)
            return rounded(torch.cat([lo * cos - hi * sin, hi * cos + lo * sin], dim=-1))

        q, k = rotate(q).unflatten(2, (hk, -1)), rotate(k)
        self.new += [k, v]
        scales = self.step.stored.kv_scales
        if self.step.stored.kv_format:
            stored = zip(self.stored[len(self.new) - 2 :], scales, strict=False)
            k, v = (self.step.values_of(*pair).expand(2, -1, -1, -1) for pair in stored)
        keys, values = (self._old(*pair) for pair in zip(pools, scales, strict=True))
        scores = torch.cat(
            [
                torch.einsum("tbkgd,bnkd->tbkgn", q, keys),
                torch.einsum("tbkgd,tbkd->tbkg", q, k).unsqueeze(-1),
            ],
            dim=-1,
        )
        token = torch.arange(scores.shape[-1], device=qkv.device)
        is_hidden = (token >= lens[:, None] - 1) & (token < scores.shape[-1] - 1)
        scores = (scores * self.step.heads.scale).masked_fill(is_hidden[:, None, None], -torch.inf)
        p_old, p_new = scores.softmax(-1).split([scores.shape[-1] - 1, 1], dim=-1)
        out = torch.einsum("tbkgn,bnkd->tbkgd", p_old, values) + p_new * v.unsqueeze(3)
        return rounded(out.flatten(2))

    def _old(self, pool: Tensor, scale: float) -> Tensor:
        """A pool's tokens before the newest, [B, tokens, heads, head_dim]; zeros beyond."""
        n = len(self.step.lens)
        pages = self.step.table[[self.step.row(i) for i in range(n)]].long()
        tokens = pool[pages.clamp(min=0)].transpose(2, 3).flatten(1, 2)
        lens = torch.tensor(self.step.lens, device=pool.device)
        is_old = torch.arange(tokens.shape[1], device=pool.device) < lens[:, None] - 1
        tokens = tokens.masked_fill(~is_old[:, :, None, None], 0)
        return self.step.values_of(tokens, scale)


def here(t: Tensor) -> Tensor:
    """In float64, where references are computed."""
    t = t.to(REFERENCE_DEVICE)
    return t.float().double() if t.itemsize == 1 else t.double()


def check(step: Step, repeats: int = 2) -> None:
    """Numbers, the same bits on each run, and only the new tokens' slots of the pools written."""
    out = step.run(repeats).to(REFERENCE_DEVICE)
    ref = Reference(step)
    naive, exact = ref.x[0].to(BF16), ref.x[1]
    assert_as_good_as(out, naive, exact)
    spread, allowed = ((x.double() - exact).square().mean().sqrt() for x in (out, naive))
    assert spread <= 1.5 * allowed
    mine = torch.zeros(step.num_pages, step.page_size, dtype=torch.bool, device="cuda")
    mine[step.slots.long() // step.page_size, step.slots.long() % step.page_size] = True
    for i, ((changed, values), new) in enumerate(zip(step.written(), ref.new, strict=True)):
        assert torch.equal(changed, mine[:, :, None].expand_as(changed))
        assert_stored(step, values, new, step.stored.kv_scales[i % 2])


def assert_stored(step: Step, values: Tensor, new: Tensor, scale: float) -> None:
    """What the pool took is as good as bfloat16, but for the rounding of fp8."""
    if step.stored.kv_format == "":
        assert_as_good_as(values.to(REFERENCE_DEVICE), new[0].to(BF16), new[1])
        return
    info = torch.finfo(step.stored.kv_dtype)
    off = (step.values_of(values, scale) - new[1]).abs()
    half_step = (new[1].abs() * info.eps).clamp(min=info.smallest_normal * info.eps * scale) / 2
    assert (off <= 1.1 * half_step + 2 * (new[0] - new[1]).abs().max()).all()
