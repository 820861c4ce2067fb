"""How numbers are judged: against float64, by the error of the plain low-precision version."""

from __future__ import annotations

import os

import torch
from torch import Tensor

# Where the references of CUDA kernels are computed (tests/sanitize.sh keeps them off the GPU).
REFERENCE_DEVICE = os.environ.get("SRT_TEST_REFERENCE_DEVICE", "cuda")


def assert_as_good_as(out: Tensor, naive: Tensor, ref64: Tensor) -> None:
    """`out` may err at most twice as much as the plain torch version `naive`, plus one rounding."""
    assert out.shape == naive.shape == ref64.shape
    assert out.dtype == naive.dtype
    if ref64.numel() == 0:
        return
    rounding = torch.finfo(naive.dtype).eps * ref64.abs().max()
    allowed = 2 * (naive.double() - ref64).abs().max() + rounding
    worst = (out.double() - ref64).abs().max()  # NaN fails the comparison
    assert worst <= allowed, f"errs by {worst:.3g}, allowed {allowed:.3g}"


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """An output tensor that shows where a kernel did not write."""
    return torch.full(shape, float("nan"), dtype=dtype)
