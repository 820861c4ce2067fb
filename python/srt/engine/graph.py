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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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


class GraphPool:
    """Captures steps into CUDA graphs that share one memory pool: only one may run at a time.

    Args:
        stream: the stream on which the engine works.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], StepOutput]) -> CapturedStep:
        """Runs a step, so that libraries pick their kernels and load them, and captures it.

        `run` only launches, and allocates from torch alone. The device message must be valid.
        """
        run()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = run()
            finally:
                graph.capture_end()
        assert output.tokens is not None
        assert output.logits is not None
        # The logits' block goes back to the pool, where smaller graphs reuse it; replays write it
        # all the same, and nobody reads it later than the next replay.
        return CapturedStep(graph, StepOutput(output.tokens, borrowed(output.logits)))


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A graph, and where its output stands after each replay."""

    graph: torch.cuda.CUDAGraph
    output: StepOutput

    def replay(self) -> StepOutput:
        """Launches the graph; the output is valid until the next replay of any."""
        self.graph.replay()
        return self.output


class DecodeGraphs:
    """Captured decode steps by padded batch size.

    Args:
        run: the decode step at a padded batch size.
    """

    def __init__(self, run: Callable[[int], StepOutput], pool: GraphPool) -> None:
        self._run = run
        self._pool = pool
        self._steps: dict[int, CapturedStep] = {}
        self._sizes: list[int] = []

    @property
    def sizes(self) -> list[int]:
        """The captured sizes, ascending."""
        return self._sizes

    def capture(self, sizes: list[int]) -> float:
        """Captures all `sizes`, largest first; returns seconds. The message must be valid."""
        begin = time.perf_counter()
        with no_collection():
            for size in sorted(sizes, reverse=True):
                self._steps[size] = self._pool.capture(partial(self._run, size))
        self._sizes = sorted(self._steps)
        return time.perf_counter() - begin

    def padded(self, num_seqs: int) -> int | None:
        """The smallest captured size that holds `num_seqs`, or None."""
        at = bisect.bisect_left(self._sizes, num_seqs)
        return self._sizes[at] if at < len(self._sizes) else None

    def replay(self, size: int) -> StepOutput:
        """Launches the graph of `size`; its output is valid until the next replay."""
        return self._steps[size].replay()


@contextmanager
def no_collection() -> Iterator[None]:
    """Keeps the garbage collector out: a collection inside a capture could free device memory."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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
