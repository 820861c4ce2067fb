"""CUDA graphs of decode steps: one launch replays prepare, forward, logits and selection.

A graph is captured for each padded batch size. Everything that changes from step to step is read
on the device, from the step message and the tensors that `prepare_step` fills, so a replay needs
no argument. All graphs share one memory pool, in which the largest is captured first: the others
then reuse its blocks, and only one graph runs at a time.
"""

from __future__ import annotations

import bisect
import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a forward leaves on the device. tokens: int32 [S]; logits: [S, vocab], raw.

    Both None where the step samples nothing. pooled: on its way to the host, see `Pooler.pool`.
    """

    tokens: Tensor | None
    logits: Tensor | None
    pooled: Tensor | None = None


class DecodeGraphs:
    """Captured decode steps by padded batch size.

    Args:
        run: the decode step at a padded batch size; only launches, allocates from torch alone.
        stream: the stream on which the engine works.
    """

    def __init__(self, run: Callable[[int], StepOutput], stream: torch.cuda.Stream) -> None:
        self._run = run
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._outputs: dict[int, StepOutput] = {}
        self._sizes: list[int] = []

    @property
    def sizes(self) -> list[int]:
        """The captured sizes, ascending."""
        return self._sizes

    def capture(self, sizes: list[int]) -> float:
        """Captures all `sizes`, largest first; returns seconds. The device message must be valid.

        Each size runs once before, so that libraries pick their kernels and load them.
        """
        begin = time.perf_counter()
        gc.collect()
        gc.disable()  # a collection inside a capture could free device memory
        try:
            for size in sorted(sizes, reverse=True):
                self._run(size)
                self._stream.synchronize()
                self._capture_one(size)
        finally:
            gc.enable()
        self._sizes = sorted(self._graphs)
        return time.perf_counter() - begin

    def padded(self, num_seqs: int) -> int | None:
        """The smallest captured size that holds `num_seqs`, or None."""
        at = bisect.bisect_left(self._sizes, num_seqs)
        return self._sizes[at] if at < len(self._sizes) else None

    def replay(self, size: int) -> StepOutput:
        """Launches the graph of `size`; its output is valid until the next replay."""
        self._graphs[size].replay()
        return self._outputs[size]

    def _capture_one(self, size: int) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = self._run(size)
            finally:
                graph.capture_end()
        assert output.tokens is not None
        assert output.logits is not None
        # The logits' block goes back to the pool, where smaller graphs reuse it; replays write it
        # all the same, and nobody reads it later than the next replay.
        self._outputs[size] = StepOutput(output.tokens, borrowed(output.logits))
        self._graphs[size] = graph


class _CudaArray:
    """A device array by the CUDA array interface, which owns nothing."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__cuda_array_interface__ = interface


def borrowed(tensor: Tensor) -> Tensor:
    """The same device memory under a tensor that does not keep it allocated."""
    kinds = {2: ("<i2", torch.int16), 4: ("<i4", torch.int32)}
    typestr, integer = kinds[tensor.element_size()]
    interface = {
        "shape": tuple(tensor.shape),
        "strides": tuple(s * tensor.element_size() for s in tensor.stride()),
        "typestr": typestr,
        "data": (tensor.data_ptr(), False),
        "version": 3,
    }
    view = torch.as_tensor(_CudaArray(interface), device=tensor.device)
    assert view.dtype == integer
    assert view.data_ptr() == tensor.data_ptr()
    return view.view(tensor.dtype)
