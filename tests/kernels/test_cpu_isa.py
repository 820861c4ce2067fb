"""The instruction sets that the CPU kernels choose from agree with each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.isa_outputs import outputs

TESTS = Path(__file__).resolve().parents[1]


def run_with(isa: str, *args: str) -> subprocess.CompletedProcess[str]:
    places = (str(TESTS), str(TESTS.parent / "python"), os.environ.get("PYTHONPATH", ""))
    path = os.pathsep.join(places)
    return subprocess.run(
        [sys.executable, *args],
        env={**os.environ, "SRT_CPU_ISA": isa, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "amx"])
def test_instruction_sets_agree(isa: str, tmp_path: Path) -> None:
    """With each other to a few roundings; which of them is right, the op tests say."""
    done = run_with(isa, str(TESTS / "kernels" / "isa_outputs.py"), str(tmp_path / "out.pt"))
    if "this CPU lacks it" in done.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "out.pt")
    assert bytes(theirs.pop("isa").tolist()).decode() == isa
    ours = outputs()
    ours.pop("isa")
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert theirs[name].dtype == value.dtype, name
        if not value.is_floating_point():
            assert torch.equal(theirs[name], value), name
            continue
        rounding = torch.finfo(value.dtype).eps * value.double().abs().max()
        assert (theirs[name].double() - value.double()).abs().max() <= 8 * rounding, name


def test_an_unknown_instruction_set_is_refused() -> None:
    done = run_with("sse9", "-c", "from srt.core import native; native.cpu_isa()")
    assert done.returncode != 0
    assert "SRT_CPU_ISA is sse9, must be portable, avx2, avx512 or amx" in done.stderr
