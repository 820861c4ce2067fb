"""CUDA graphs of extend steps, for models whose kernels are shorter than their launches.

A graph takes any step that fits its bucket: so many tokens in so many sequences, decodes among
them. The kernels read the true counts on the device. Buckets are captured in rising order until
the device takes longer than the host needs to launch: from there on graphs gain nothing, and
padding costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from srt.engine.graph import CapturedStep, GraphPool, StepOutput, no_collection
from srt.engine_sizes import EXTEND_BUCKET_TOKENS

TOKENS_PER_SEQ = 16
MIN_SEQS, MAX_SEQS = 4, 64
LAUNCH_BOUND = 0.7  # of a step's time is spent launching, at least, where a graph is worth it


class Bucket(NamedTuple):
    """The padded size of a captured step; each padding sequence takes one of its tokens."""

    num_seqs: int
    num_tokens: int

    def fits(self, num_seqs: int, num_tokens: int) -> bool:
        """Whether a step of this size can be padded to the bucket."""
        padding = self.num_seqs - num_seqs
        return padding >= 0 and num_tokens + padding <= self.num_tokens


def extend_buckets(max_step_tokens: int, max_running: int) -> list[Bucket]:
    """All buckets that a step of these limits may need, ascending."""
    sizes = []
    for tokens in EXTEND_BUCKET_TOKENS:
        num_seqs = min(max(tokens // TOKENS_PER_SEQ, MIN_SEQS), MAX_SEQS, max_running)
        if tokens + num_seqs <= max_step_tokens:
            sizes.append(Bucket(num_seqs, tokens + num_seqs))
    return sizes


class ExtendGraphs:
    """Captured extend steps by bucket.

    Args:
        run: the step at a bucket's size.
    """

    def __init__(self, run: Callable[[Bucket], StepOutput], pool: GraphPool) -> None:
        self._run = run
        self._pool = pool
        self._steps: dict[Bucket, CapturedStep] = {}

    @property
    def buckets(self) -> list[Bucket]:
        """The captured ones, ascending."""
        return list(self._steps)

    def capture(self, sizes: list[Bucket]) -> None:
        """Captures `sizes`, ascending, as far as launches bound them. The message must be valid."""
        with no_collection():
            for bucket in sizes:
                self._run(bucket)  # loads kernels
                if self._launch_share(bucket) < LAUNCH_BOUND:
                    return
                self._steps[bucket] = self._pool.capture(partial(self._run, bucket))

    def find(self, num_seqs: int, num_tokens: int) -> Bucket | None:
        """The smallest captured bucket that the step fits, or None."""
        return next((b for b in self._steps if b.fits(num_seqs, num_tokens)), None)

    def replay(self, bucket: Bucket) -> StepOutput:
        """Launches the graph of `bucket`; its output is valid until the next replay."""
        return self._steps[bucket].replay()

    def _launch_share(self, bucket: Bucket) -> float:
        """The part of a step's time after which all of it is launched."""
        torch.cuda.current_stream().synchronize()
        begin = time.perf_counter()
        self._run(bucket)
        launched = time.perf_counter() - begin
        torch.cuda.current_stream().synchronize()
        return launched / (time.perf_counter() - begin)
