"""The physical limit of a workload: per part, bytes over bandwidth or FLOPs over rate.

`python -m bench.roofline --shape L8B --batch 32 --context 1024` prints one decode step's parts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.shapes import SHAPES


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured rates of one device; see bench/results for where they come from."""

    name: str
    read_gb_s: float
    bf16_tflop_s: float
    fp8_tflop_s: float

    def times(self, num_gpus: int) -> Ceilings:
        """Those of several such devices that share all work and talk for nothing."""
        rates = (self.read_gb_s, self.bf16_tflop_s, self.fp8_tflop_s)
        return Ceilings(f"{num_gpus} x {self.name}", *(num_gpus * rate for rate in rates))


H100 = Ceilings("NVIDIA H100 80GB HBM3", read_gb_s=3105, bf16_tflop_s=715, fp8_tflop_s=1327)


@dataclass(frozen=True, slots=True)
class Costs:
    """What one forward must move and compute, in bytes and FLOPs."""

    weight_bytes: float
    gemm_flops: float
    kv_bytes: float
    attn_flops: float


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes that decide the roofline of a dense decoder."""

    layer_params: int  # GEMM weights of all layers
    head_params: int  # the LM head's
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    weight_bytes: float = 2
    kv_bytes: float = 2

    @classmethod
    def from_config(cls, c: Mapping[str, Any], *, fp8: bool = False, fp8_kv: bool = False) -> Model:
        """Read an HF-style config; `fp8` halves layer weights (the head stays 16-bit) and KV,
        `fp8_kv` KV alone.
        """
        hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        dim = c.get("head_dim") or hidden // heads
        attn = hidden * dim * (heads + 2 * kv) + heads * dim * hidden
        mlp = 3 * hidden * c["intermediate_size"]
        return cls(
            layer_params=c["num_hidden_layers"] * (attn + mlp),
            head_params=hidden * c["vocab_size"],
            layers=c["num_hidden_layers"],
            heads=heads,
            kv_heads=kv,
            head_dim=dim,
            weight_bytes=1 if fp8 else 2,
            kv_bytes=1 if fp8 or fp8_kv else 2,
        )

    def kv_bytes_per_token(self) -> float:
        """K and V of all layers, bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes

    def step(self, query_lens: Sequence[int], seq_lens: Sequence[int], num_logits: int) -> Costs:
        """Costs of one forward over ragged causal queries; `seq_lens` include the queries."""
        tokens = sum(query_lens)
        pairs = sum(q * (s - (q - 1) / 2) for q, s in zip(query_lens, seq_lens, strict=True))
        return Costs(
            weight_bytes=self.layer_params * self.weight_bytes + self.head_params * 2,
            gemm_flops=2 * (tokens * self.layer_params + num_logits * self.head_params),
            kv_bytes=sum(seq_lens) * self.kv_bytes_per_token(),
            attn_flops=4 * self.layers * self.heads * self.head_dim * pairs,
        )


def seconds(costs: Costs, chip: Ceilings, *, fp8: bool = False) -> float:
    """The limit of one forward: GEMM part plus attention part, each at its slower resource."""
    flops = (chip.fp8_tflop_s if fp8 else chip.bf16_tflop_s) * 1e12
    gemm = max(costs.weight_bytes / (chip.read_gb_s * 1e9), costs.gemm_flops / flops)
    attn = max(
        costs.kv_bytes / (chip.read_gb_s * 1e9), costs.attn_flops / (chip.bf16_tflop_s * 1e12)
    )
    return gemm + attn


def decode_step_seconds(
    model: Model, chip: Ceilings, contexts: Sequence[int], *, fp8: bool
) -> float:
    """The limit of one decode step of `len(contexts)` sequences."""
    ones = [1] * len(contexts)
    return seconds(model.step(ones, list(contexts), len(contexts)), chip, fp8=fp8)


def offline_seconds(
    model: Model, chip: Ceilings, requests: Sequence[tuple[int, int]], *, fp8: bool = False
) -> float:
    """The limit of serving `(in, out)` requests that all decode together after one prefill each."""
    total = 0.0
    for n_in, _ in requests:
        costs = model.step([n_in], [n_in], 1)
        no_weights = Costs(0, costs.gemm_flops, 0, costs.attn_flops)
        total += seconds(no_weights, chip, fp8=fp8)
    for step in range(1, max(out for _, out in requests)):
        contexts = [n_in + step for n_in, out in requests if out > step]
        total += decode_step_seconds(model, chip, contexts, fp8=fp8)
    return total


def main() -> None:
    """Print the limit of one decode step and of a whole-prompt prefill."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--shape", choices=sorted(SHAPES), default="L8B")
    ap.add_argument("--batch", type=int, default=1)
    ap.add_argument("--context", type=int, default=1024, help="tokens of KV per sequence")
    ap.add_argument("--fp8", action="store_true", help="fp8 layer weights and KV")
    args = ap.parse_args()
    model = Model.from_config(SHAPES[args.shape], fp8=args.fp8)
    contexts = [args.context] * args.batch
    decode = decode_step_seconds(model, H100, contexts, fp8=args.fp8)
    prefill = seconds(model.step(contexts, contexts, args.batch), H100, fp8=args.fp8)
    print(f"{args.shape} batch {args.batch} context {args.context} on {H100.name}")
    print(f"  decode step  {decode * 1e3:8.3f} ms   {args.batch / decode:10.0f} tokens/s")
    print(f"  prefill      {prefill * 1e3:8.3f} ms   {sum(contexts) / prefill:10.0f} tokens/s")


if __name__ == "__main__":
    main()
