"""Gated activations and the logits softcap."""

from __future__ import annotations

import torch
from torch import Tensor

from srt.core import native
from srt.ops import cuda, reference


def silu_and_mul(x: Tensor) -> Tensor:
    """`silu(x[:, :I]) * x[:, I:]`: [T, 2I] -> [T, I]."""
    return cuda.act_and_mul(x, "silu") if x.is_cuda else _gated(x, "silu")


def gelu_and_mul(x: Tensor, *, tanh: bool) -> Tensor:
    """`gelu(x[:, :I]) * x[:, I:]`: [T, 2I] -> [T, I].

    Args:
        x: [T, 2I], the last dimension contiguous.
        tanh: the tanh approximation instead of erf.
    """
    if x.is_cuda:
        return cuda.act_and_mul(x, "gelu_tanh" if tanh else "gelu")
    return _gated(x, "gelu_tanh" if tanh else "gelu")


def _gated(x: Tensor, act: str) -> Tensor:
    out = torch.empty((x.shape[0], x.shape[1] // 2), dtype=x.dtype)
    native.cpu_gated(x, act, out)
    return out


def softcap(x: Tensor, cap: float) -> Tensor:
    """`cap * tanh(x / cap)`, in place; returns x. Any shape; torch on every device."""
    if x.is_cuda and x.is_contiguous():
        return cuda.softcap(x, cap)
    return reference.softcap(x, cap)
