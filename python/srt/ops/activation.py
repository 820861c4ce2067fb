"""Gated activations and the logits softcap."""

from __future__ import annotations

from torch import Tensor

from srt.ops import reference


def silu_and_mul(x: Tensor) -> Tensor:
    """`silu(x[:, :I]) * x[:, I:]`: [T, 2I] -> [T, I]. On CUDA: the torch reference."""
    return reference.silu_and_mul(x)


def gelu_and_mul(x: Tensor, *, tanh: bool) -> Tensor:
    """`gelu(x[:, :I]) * x[:, I:]`: [T, 2I] -> [T, I]. On CUDA: the torch reference.

    Args:
        x: [T, 2I], the last dimension contiguous.
        tanh: the tanh approximation instead of erf.
    """
    return reference.gelu_and_mul(x, tanh=tanh)


def softcap(x: Tensor, cap: float) -> Tensor:
    """`cap * tanh(x / cap)`, in place; returns x. Any shape."""
    return reference.softcap(x, cap)
