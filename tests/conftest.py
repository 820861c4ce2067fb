"""Tests that need devices run where the devices are."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips `gpu` and `multi_gpu` tests where too few CUDA devices are visible."""
    num_devices = torch.cuda.device_count()
    for marker, needed in (("gpu", 1), ("multi_gpu", 2)):
        if num_devices >= needed:
            continue
        for item in items:
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA device(s)"))
