"""Hidden states to one vector a sequence, on the device, in the step that ends its prompt."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from srt.batch import ForwardBatch
from srt.core import native
from srt.models.decoder import Decoder


class Pooler:
    """Pools as the checkpoint says; in float32 from the rows on.

    A mean and a first token must outlive the chunks of a prompt: a row of `_kept` holds the sum,
    or the first token's state, of the sequence that has that row.

    Args:
        max_running: rows that sequences may have; row `max_running` is scratch.
    """

    def __init__(self, model: Decoder, max_running: int, device: torch.device) -> None:
        self._pooling = model.config.embedding.pooling
        self._normalize = model.config.embedding.normalize
        self._score = model.score
        self._kept: Tensor | None = None
        if model.score is None and model.config.embedding.needs_all_tokens:
            shape = (max_running + 1, model.config.hidden_size)
            self._kept = torch.zeros(shape, dtype=torch.float32, device=device)

    @property
    def needs_all_steps(self) -> bool:
        """Whether steps count in which no prompt ends."""
        return self._kept is not None

    def pool(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, hidden] → float32 [B, size] on its way to the host, a row for every sequence.

        Rows of sequences whose prompt does not end with this step are to be ignored.
        """
        pooled = self._pooled(hidden, batch)
        if self._score is not None:
            pooled = self._score(pooled).float()
        elif self._normalize:
            pooled = F.normalize(pooled.float(), dim=1)
        return pooled.float().to("cpu", non_blocking=True)

    def _pooled(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        starts, ends = batch.q_indptr[:-1], batch.q_indptr[1:]
        if self._kept is None:
            return hidden.index_select(0, ends - 1)
        lens = ends - starts
        is_first = (lens == batch.seq_lens).unsqueeze(1)
        before = self._kept.index_select(0, batch.rows)
        if self._pooling == "cls":
            kept = torch.where(is_first, hidden.index_select(0, starts).float(), before)
            self._kept.index_copy_(0, batch.rows.long(), kept)
            return kept
        sums = torch.segment_reduce(hidden.float(), "sum", lengths=lens.long(), axis=0)
        kept = torch.where(is_first, sums, before + sums)
        self._kept.index_copy_(0, batch.rows.long(), kept)
        return kept / batch.seq_lens.unsqueeze(1)


class VectorBook:
    """Keeps the vectors of living sequences from their step's commit until their last event."""

    def __init__(self) -> None:
        self._living: set[int] = set()
        self._found: dict[int, bytes] = {}

    def open(self, seq_id: int) -> None:
        """A sequence that is to be embedded has come."""
        self._living.add(seq_id)

    def take_in(self, plan: native.StepPlan, pooled: Tensor) -> None:
        """Files the rows of the sequences whose prompts ended with a step."""
        ended = zip(plan.prompt_end_seq_ids.tolist(), plan.prompt_end_seqs.tolist(), strict=True)
        for seq_id, row in ended:
            if seq_id in self._living:
                self._found[seq_id] = pooled[row].numpy().astype("<f4").tobytes()

    def collect(self, seq_ids: list[int], finish: list[int]) -> dict[int, bytes]:
        """The vectors of those that have ended; those that were aborted have none."""
        if not self._living:
            return {}
        ended = [i for i, reason in zip(seq_ids, finish, strict=True) if reason]
        self._living.difference_update(ended)
        return {i: self._found.pop(i) for i in ended if i in self._found}
