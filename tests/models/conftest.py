"""Checkpoints that several tests read, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from srt.tiny import write_tiny


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny Llama: its folder, and the transformers model."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    return folder, write_tiny(folder)
