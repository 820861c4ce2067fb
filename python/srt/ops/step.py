"""Unpacks a step message into the step's fixed buffers."""

from __future__ import annotations

from torch import Tensor

from srt.batch import StepBuffers
from srt.core import native
from srt.ops import cuda


def prepare_step(
    message: Tensor,
    page_table: Tensor,
    last_tokens: Tensor,
    slot_tokens: Tensor,
    buffers: StepBuffers,
    padded_seqs: int,
    padded_tokens: int,
) -> None:
    """Does what docs/contracts.md section 3 says. On CUDA: the torch reference.

    Args:
        message: int32 [words], on the device of the other tensors.
        page_table: int32 [max_running + 1, max_pages_per_seq]; page updates are written to it.
        last_tokens: int32 [max_running + 1]; read where a token id is -1.
        slot_tokens: int32 [num_pages * page_size]; the step's token ids are written to it.
        buffers: filled up to the padded counts.
        padded_seqs: sequences in the buffers, padding included; at least num_seqs.
        padded_tokens: tokens in the buffers, padding included; at least
            num_tokens + padded_seqs - num_seqs.
    """
    if message.is_cuda:
        cuda.prepare_step(
            message, page_table, last_tokens, slot_tokens, buffers, padded_seqs, padded_tokens
        )
        return
    native.cpu_prepare_step(
        message,
        page_table,
        last_tokens,
        slot_tokens,
        buffers.tensors(),
        padded_seqs,
        padded_tokens,
    )
