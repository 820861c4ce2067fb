"""Checkpoints that the engine's tests serve, each written once, and transformers beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srt.tiny import write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny random Llama: its folder, and the transformers model in float32."""
    folder = tmp_path_factory.mktemp("tiny_engine")
    return folder, write_tiny(folder)


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Torch on as many threads as the smallest machine has; sums are then the same everywhere."""
    torch.set_num_threads(2)
