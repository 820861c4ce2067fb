"""The choice of the next token, and log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from srt.batch import StepBuffers
from srt.core import native
from srt.ops import cuda


def sample(  # noqa: PLR0913
    logits: Tensor,
    message: Tensor,
    buffers: StepBuffers,
    page_table: Tensor,
    slot_tokens: Tensor,
    last_tokens: Tensor,
    *,
    page_size: int,
    flags: int = -1,
    bitmask: Tensor | None = None,
) -> Tensor:
    """Draws one token per row of logits and writes it to `last_tokens[buffers.sample_rows]`.

    What a row draws depends on its logits, its sampling record, its history, its bitmask row, its
    seed and its position alone; docs/contracts.md section 3.1 fixes the formulas. Row i of
    `logits` goes with record i of `buffers.sampling`; records past num_samples are padding.
    On CUDA nothing waits for the device.

    Args:
        logits: [S, V] float, raw; not modified.
        message: int32 [words]: the step's message on the device (stop ids and biases are read
            from its extra section).
        buffers: as `prepare_step` left them: sampling, sample_rows, rows, seq_lens, prompt_lens.
        page_table, slot_tokens: the history of penalized rows is read through them.
        last_tokens: int32 [max_running + 1], written.
        page_size: slots per page.
        flags: the bitwise or of the step's sampling flags, where the host knows it; -1: unknown.
            It only lets a launcher skip what no row needs.
        bitmask: int32 [R, ceil(V / 32)], bit set: allowed; `bitmask_row` of a record picks a row.

    Returns:
        int32 [S].
    """
    if not logits.is_cuda:
        tokens = torch.empty(logits.shape[0], dtype=torch.int32)
        native.cpu_sample(
            logits,
            message,
            buffers.sampling,
            buffers.sample_rows,
            buffers.rows,
            buffers.seq_lens,
            buffers.prompt_lens,
            page_table,
            slot_tokens,
            last_tokens,
            page_size,
            bitmask,
            tokens,
        )
        return tokens
    return cuda.sample(
        logits,
        message,
        buffers,
        page_table,
        slot_tokens,
        last_tokens,
        page_size=page_size,
        flags=flags,
        bitmask=bitmask,
    )


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """`log_softmax(logits)[i, tokens[i]]` of raw logits [S, V], tokens int32 [S]: float32 [S]."""
    if logits.is_cuda:
        return cuda.token_logprobs(logits, tokens)
    out = torch.empty(logits.shape[0], dtype=torch.float32)
    native.cpu_token_logprobs(logits, tokens, out)
    return out


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of `log_softmax(logits)` [S, V], best first.

    They are the very numbers that `token_logprobs` gives for those tokens: clients compare them.

    Returns:
        values float32 [S, k] and token ids int32 [S, k].
    """
    if logits.is_cuda:
        return cuda.top_logprobs(logits, k)
    values, ids = torch.topk(logits.float(), k, dim=-1)
    ids = ids.int()
    best = token_logprobs(logits, ids[:, 0].contiguous())  # -log(sum(exp(x - max x)))
    return (values - values[:, :1]) + best[:, None], ids
