"""Sums between two GPUs, in processes that share their memory by handles."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.peer_ranks import Work, run_ranks
from srt.core import native

if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [2, 4])
def test_one_device(tmp_path: Path, size: int) -> None:
    """Takes turns on one GPU, where a rank that waits is often late by whole slices of time."""
    found = run_ranks(Work(size, 40, one_device=True), tmp_path)
    for rank in found:
        assert rank.wrong == []
        assert rank.graph_wrong == 0
        assert rank.digest == found[0].digest


@pytest.mark.multi_gpu
def test_two_devices(tmp_path: Path) -> None:
    first, second = run_ranks(Work(2, 300), tmp_path)
    assert first.summed_by == second.summed_by
    assert first.summed_by.startswith("peer-to-peer kernels")
    assert first.disabled == "NCCL (--disable-custom-all-reduce)"
    for found in (first, second):
        assert found.wrong == []
        assert found.graph_wrong == 0
    assert first.digest == second.digest
