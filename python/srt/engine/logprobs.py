"""Logprobs of sampled and prompt tokens: computed with their step, sorted out per sequence."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from srt import ops
from srt.batch import StepBuffers
from srt.channel import SeqLogprobs
from srt.core import native
from srt.engine.step import StepShape
from srt.models.decoder import Decoder

# Rows of prompt logits are computed in chunks of about this many bytes of float32.
CHUNK_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class StepLogprobs:
    """Logprobs of a step's logit rows, on their way to the host: samples first, then prompt rows.

    chosen: float32 [L].  top_values, top_ids: [L, top_k], best first; None where top_k is 0.
    """

    chosen: Tensor
    top_values: Tensor | None
    top_ids: Tensor | None

    def top(self, row: int, k: int) -> list[tuple[int, float]]:
        """The `k` best alternatives of a row."""
        if k == 0 or self.top_values is None or self.top_ids is None:
            return []
        ids, values = self.top_ids[row, :k].tolist(), self.top_values[row, :k].tolist()
        return list(zip(ids, values, strict=True))


def compute_logprobs(
    model: Decoder,
    shape: StepShape,
    buffers: StepBuffers,
    logits: Tensor | None,
    tokens: Tensor | None,
    hidden: Tensor | None,
) -> StepLogprobs:
    """Launches the logprobs of a step; the copies to the host are done when the step's are.

    Args:
        logits, tokens: [S, vocab] and [S] of the samples; None if there are none.
        hidden: [T, hidden] of the forward, from which prompt rows take theirs; may be None where
            the step has no prompt rows.
    """
    parts: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    if logits is not None and tokens is not None:
        parts.append(_logprobs_of(logits, tokens, shape.top_k))
    if hidden is not None:
        chunk = max(1, CHUNK_BYTES // (4 * model.config.vocab_size))
        for begin in range(shape.num_samples, shape.num_logits, chunk):
            end = min(begin + chunk, shape.num_logits)
            rows = hidden.index_select(0, buffers.logit_idx[begin:end])
            targets = buffers.logit_targets[begin:end]
            parts.append(_logprobs_of(model.compute_logits(rows), targets, shape.top_k))
    chosen, values, ids = zip(*parts, strict=True)
    return StepLogprobs(
        _to_host(torch.cat(chosen)),
        _to_host(torch.cat(values)) if shape.top_k else None,
        _to_host(torch.cat(ids)) if shape.top_k else None,
    )


def _logprobs_of(
    logits: Tensor, tokens: Tensor, top_k: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    chosen = ops.token_logprobs(logits, tokens)
    if top_k == 0:
        return chosen, None, None
    return chosen, *ops.top_logprobs(logits, min(top_k, logits.shape[1]))


def _to_host(x: Tensor) -> Tensor:
    """A copy in host memory: pinned, and in stream order, if `x` is on a GPU."""
    return x.to("cpu", non_blocking=True)


@dataclass(slots=True)
class PromptScores:
    """What one sequence has asked for and what has come of it.

    start: the first prompt position wanted, -1: none.  by_position: position → its entries.
    """

    start: int
    prompt_len: int
    top_k: int
    by_position: dict[int, tuple[float, list[tuple[int, float]]]] = field(default_factory=dict)


class LogprobBook:
    """Keeps the logprobs of living sequences that asked for them, until their events are sent."""

    def __init__(self) -> None:
        self._scores: dict[int, PromptScores] = {}

    def open(self, seq_id: int, start: int, prompt_len: int, top_k: int) -> None:
        """A sequence that wants logprobs has come."""
        self._scores[seq_id] = PromptScores(start, prompt_len, top_k)

    def close(self, seq_id: int) -> None:
        """The sequence has ended; unknown ids are fine."""
        self._scores.pop(seq_id, None)

    def __len__(self) -> int:
        return len(self._scores)

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self._scores

    def add_prompt_rows(self, plan: native.StepPlan, step: StepLogprobs) -> None:
        """Files the prompt rows of a step under their sequences and positions."""
        if plan.num_logits == plan.num_samples:
            return
        seq_ids, positions = plan.logit_seq_ids.tolist(), plan.logit_positions.tolist()
        chosen = step.chosen.tolist()
        for row in range(plan.num_samples, plan.num_logits):
            scores = self._scores.get(seq_ids[row])
            if scores is not None:
                entry = (chosen[row], step.top(row, scores.top_k))
                scores.by_position[positions[row]] = entry

    def take(
        self, seq_id: int, sample_idx: int, step: StepLogprobs | None, *, is_first: bool
    ) -> SeqLogprobs:
        """The logprobs that go with one event; prompt entries with a sequence's first."""
        scores = self._scores[seq_id]
        token: float | None = None
        top: list[tuple[int, float]] = []
        if step is not None and sample_idx >= 0:
            token, top = step.chosen[sample_idx].item(), step.top(sample_idx, scores.top_k)
        if not is_first or scores.start < 0:
            return SeqLogprobs(token=token, top=top)
        found, scores.by_position = scores.by_position, {}
        wanted = range(scores.start, scores.prompt_len)
        positions = list(itertools.takewhile(lambda p: p == 0 or p in found, wanted))
        return SeqLogprobs(
            token=token,
            top=top,
            prompt=[found[p][0] if p else None for p in positions],
            prompt_top=[found[p][1] if p else None for p in positions] if scores.top_k else [],
        )
