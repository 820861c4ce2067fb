"""Decode steps on the CPU without Python: the calls of a forward are recorded once and replayed.

A tape is to the CPU what a CUDA graph is to a device. It is made by the first step of a batch
size, which runs as ever while its kernel calls are noted with their addresses; later steps of that
size replay them in one call. It can stand for the step only if nothing but our kernels touched
memory, so every torch operation of that first step is watched: one that computes means that the
model's steps keep running operation by operation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srt.core import native

log = logging.getLogger(__name__)

MAX_BATCH = 16  # beyond, Python's share of a step is small and the kept logits are not
_ALLOCATIONS = frozenset({"aten::empty", "aten::empty_like", "aten::empty_strided"})
_VIEWS = frozenset({"aten::_unsafe_view", "aten::detach", "aten::alias"})


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what torch allocates and views, and names the first operation that computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: list[object] = []
        self.foreign = ""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs `func` and notes it."""
        out: object = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not (func.is_view or name in _VIEWS or name in _ALLOCATIONS):
            self.foreign = self.foreign or name
        self.kept.append(out)
        return out


@dataclass(frozen=True, slots=True)
class _Recorded:
    tape: native.CpuTape
    kept: list[object]  # every tensor that the calls on the tape read or write
    logits: Tensor


class DecodeTapes:
    """Recorded decode forwards by batch size, for one model, its buffers and its pool."""

    def __init__(self) -> None:
        self._recorded: dict[int, _Recorded] = {}
        self._is_refused = False

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that replay, ascending."""
        return sorted(self._recorded)

    def logits(self, size: int, forward: Callable[[], Tensor]) -> Tensor:
        """The logits [size, vocab] of a decode step, valid until the next step of that size.

        Args:
            forward: runs the step's model; always the same calls for one `size`.
        """
        found = self._recorded.get(size)
        if found is not None:
            found.tape.replay()
            return found.logits
        if self._is_refused or size > MAX_BATCH:
            return forward()
        return self._record(size, forward)

    def _record(self, size: int, forward: Callable[[], Tensor]) -> Tensor:
        tape = native.CpuTape()
        tape.begin()
        try:
            with _Watch() as watch:
                logits = forward()
        finally:
            tape.end()
        if watch.foreign:
            self._is_refused = True
            log.info("decode steps run operation by operation: the model uses %s", watch.foreign)
        else:
            self._recorded[size] = _Recorded(tape, watch.kept, logits)
        return logits
