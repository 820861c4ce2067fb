"""What an engine keeps on its device from step to step, and the sizes that never change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srt.batch import KvPool, StepBuffers


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that are fixed for the engine's life.

    max_step_tokens: query tokens of one step. max_logits: rows of logits of one step.
    """

    max_running: int
    max_seq_len: int
    max_step_tokens: int
    max_logits: int
    page_size: int

    @property
    def max_pages_per_seq(self) -> int:
        """Columns of the page table."""
        return -(-self.max_seq_len // self.page_size)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The device tensors that live from step to step; docs/contracts.md sections 1 to 3."""

    buffers: StepBuffers
    page_table: Tensor
    last_tokens: Tensor
    slot_tokens: Tensor
    kv: KvPool

    @classmethod
    def allocate(cls, limits: Limits, kv: KvPool, device: torch.device) -> DeviceState:
        """Zeroed tensors around a pool."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        rows = limits.max_running + 1
        return cls(
            buffers=StepBuffers.allocate(
                limits.max_step_tokens, limits.max_running, limits.max_logits, device
            ),
            page_table=zeros(rows, limits.max_pages_per_seq),
            last_tokens=zeros(rows),
            slot_tokens=zeros(kv.k[0].shape[0] * limits.page_size),
            kv=kv,
        )
