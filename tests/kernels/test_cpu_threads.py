"""The pool of OpenMP threads: released between loops, and made anew by the next loop."""

from __future__ import annotations

import torch

from srt import ops
from srt.core import native


def test_loops_run_after_a_release() -> None:
    x, weight = torch.randn(4, 512), torch.randn(1024, 512)
    before = ops.linear(x, weight)
    assert native.cpu_release_threads()
    assert torch.equal(ops.linear(x, weight), before)
