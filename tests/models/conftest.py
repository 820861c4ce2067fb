"""What the model tests share: one thread, and checkpoints that are written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints import Cache
from srt.tiny import write_tiny


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny matrices are faster without a thread pool, and sums then have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Every family's tiny checkpoint."""
    return Cache(tmp_path_factory.mktemp)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny Llama: its folder, and the transformers model."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    return folder, write_tiny(folder)
