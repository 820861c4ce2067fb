"""Vocab-parallel embedding and logits: each rank holds a range of the vocabulary."""

from __future__ import annotations

from torch import Tensor, nn

from srt import ops
from srt.footprint import vocab_rows
from srt.layers.build import Build
from srt.weights.table import Part


class VocabParallelEmbedding(nn.Module):
    """Token id → vector. Rank r holds rows from r * rows; beyond the vocabulary they are zero."""

    def __init__(self, vocab_size: int, hidden_size: int, build: Build) -> None:
        super().__init__()
        self.tp = build.tp
        self.rows = rows_per_rank(vocab_size, build)
        self.parts = {"": vocab_part(vocab_size, build)}
        self.weight = build.empty(self.rows, hidden_size)

    def forward(self, token_ids: Tensor) -> Tensor:
        """int32 [num_tokens] → [num_tokens, hidden], the same on every rank."""
        if self.tp.size == 1:
            return ops.embedding(token_ids, self.weight)
        first_id = self.tp.rank * self.rows
        return self.tp.all_reduce(ops.embedding(token_ids, self.weight, first_id))


class LmHead(nn.Module):
    """Hidden → logits. Shares `weight` with an embedding where the checkpoint ties them."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        build: Build,
        *,
        bias: bool = False,
        tied: VocabParallelEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.tp = build.tp
        self.vocab_size = vocab_size
        self.parts = {"": vocab_part(vocab_size, build)}
        rows = rows_per_rank(vocab_size, build)
        self.weight = build.empty(rows, hidden_size) if tied is None else tied.weight
        self.bias = build.empty(rows) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[num_rows, hidden] → [num_rows, vocab_size] on every rank."""
        logits = self.tp.all_gather(ops.linear(x, self.weight, self.bias))
        return logits[:, : self.vocab_size]


def rows_per_rank(vocab_size: int, build: Build) -> int:
    """Vocabulary rows of each rank, padding included."""
    return vocab_rows(vocab_size, build.tp.size)


def vocab_part(vocab_size: int, build: Build) -> Part:
    """Which rows of the vocabulary this rank holds."""
    rows = rows_per_rank(vocab_size, build)
    start = min(build.tp.rank * rows, vocab_size)
    return Part(vocab_size, start, min(rows, vocab_size - start), 0)
