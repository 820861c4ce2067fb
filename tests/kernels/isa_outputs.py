"""Runs every CPU kernel on fixed inputs and saves the outputs: what one instruction set computes.

Run as a program, because SRT_CPU_ISA is read once per process: `isa_outputs.py OUT.pt`.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from kernels.test_ops_attention import Case, make_batch, make_tensors
from kernels.test_ops_sampling import draw_logits, mixed_records, run
from srt import ops
from srt.core import native


def outputs() -> dict[str, Tensor]:
    """name → output, for every kernel and dtype."""
    found: dict[str, Tensor] = {"isa": torch.tensor(list(native.cpu_isa().encode()))}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(9, 2 * 83, generator=generator).to(dtype)
        weight = torch.randn(101, 2 * 83, generator=generator).to(dtype)
        found[f"rms_norm {dtype}"] = ops.rms_norm(x, weight[0], 1e-5)
        found[f"layer_norm {dtype}"] = ops.layer_norm(x, weight[0], weight[1], 1e-5)
        found[f"silu {dtype}"] = ops.silu_and_mul(x)
        found[f"gelu {dtype}"] = ops.gelu_and_mul(x, tanh=False)
        found[f"gelu_tanh {dtype}"] = ops.gelu_and_mul(x, tanh=True)
        found[f"linear {dtype}"] = ops.linear(x, weight)
        found[f"linear 1 {dtype}"] = ops.linear(x[:1], weight)
        for kv_format in ("", "fp8_e5m2", "fp8_e4m3"):
            case = Case(dtype=dtype, kv_format=kv_format, softcap=20.0, dim=72, v_dim=40)
            batch = make_batch(case)
            q, k_cache, v_cache = make_tensors(case, batch)
            found[f"attention {dtype} {kv_format}"] = ops.paged_attention(
                q, k_cache, v_cache, batch, scale=0.1, softcap=20.0, kv_format=kv_format
            )
        logits = draw_logits(8).to(dtype)
        ids = torch.arange(8, dtype=torch.int32)
        found[f"logprobs {dtype}"] = ops.token_logprobs(logits, ids)
        histories = [([1, 5, 9, 9], 2)] * 8
        found[f"sample {dtype}"] = torch.tensor(run(logits, mixed_records(), histories))
    return found


if __name__ == "__main__":
    torch.save(outputs(), sys.argv[1])
