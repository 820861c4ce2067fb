"""Runs a model by hand-made batches, without an engine: any prefill, then greedy decode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srt.batch import ForwardBatch, KvPool
from srt.families import load_model_config
from srt.models.decoder import Decoder
from srt.models.registry import build_model
from srt.parallel import TensorParallel
from srt.weights.loader import load_weights

PAGE_SIZE = 4
MAX_PAGES = 64  # per sequence
MAX_ROWS = 8


@dataclass
class Runner:
    """One model and a pool in which each row owns its pages, handed out in shuffled order."""

    model: Decoder
    dtype: torch.dtype = torch.float32
    lens: dict[int, int] = field(default_factory=dict)  # row → tokens in the pool

    def __post_init__(self) -> None:
        spec = self.model.kv_spec
        num_pages = MAX_ROWS * MAX_PAGES + 1

        def pool(dim: int) -> tuple[Tensor, ...]:
            shape = (num_pages, spec.num_kv_heads, PAGE_SIZE, dim)
            return tuple(torch.full(shape, float("nan"), dtype=self.dtype) for _ in self.layers)

        self.layers = range(spec.num_layers)
        ones = (1.0,) * spec.num_layers
        v = pool(spec.v_head_dim) if spec.v_head_dim else ()
        self.kv = KvPool(pool(spec.head_dim), v, PAGE_SIZE, "", ones, ones)
        pages = torch.randperm(num_pages - 1, generator=torch.Generator().manual_seed(0)) + 1
        self.page_table = torch.zeros(MAX_ROWS + 1, MAX_PAGES, dtype=torch.int32)
        self.page_table[:MAX_ROWS] = pages.view(MAX_ROWS, MAX_PAGES)

    def step(self, chunks: dict[int, list[int]]) -> Tensor:
        """Runs row → next tokens in one batch. Returns the logits of every token, [T, vocab]."""
        return self.model.compute_logits(self.hidden(chunks))

    def step_with(
        self, chunks: dict[int, list[int]], forward: Callable[[Decoder, ForwardBatch], Tensor]
    ) -> Tensor:
        """What `forward` makes of the same batch."""
        return forward(self.model, self.batch(chunks))

    def hidden(self, chunks: dict[int, list[int]]) -> Tensor:
        """The same as `step`, but hidden states, [T, hidden]."""
        out: Tensor = self.model(self.batch(chunks))
        return out

    def batch(self, chunks: dict[int, list[int]]) -> ForwardBatch:
        """Row → next tokens as one batch. `order` is then the rows as they are run."""
        rows = sorted(chunks, key=lambda row: len(chunks[row]) > 1)  # decodes come first
        positions, slots, seq_lens, indptr = [], [], [], [0]
        for row in rows:
            start = self.lens.get(row, 0)
            end = start + len(chunks[row])
            for position in range(start, end):
                page = int(self.page_table[row, position // PAGE_SIZE])
                positions.append(position)
                slots.append(page * PAGE_SIZE + position % PAGE_SIZE)
            seq_lens.append(end)
            indptr.append(len(positions))
            self.lens[row] = end
        num_tokens = len(positions)
        self.order = rows
        return ForwardBatch(
            num_tokens=num_tokens,
            num_seqs=len(rows),
            num_decode=sum(len(chunks[row]) == 1 for row in rows),
            token_ids=_int32([t for row in rows for t in chunks[row]]),
            positions=_int32(positions),
            slots=_int32(slots),
            rows=_int32(rows),
            q_indptr=_int32(indptr),
            seq_lens=_int32(seq_lens),
            page_table=self.page_table,
            logit_idx=torch.arange(num_tokens, dtype=torch.int32),
            max_q_len=max(len(chunk) for chunk in chunks.values()),
            max_seq_len=max(seq_lens),
            kv=self.kv,
        )

    def share_prefix(self, from_row: int, to_row: int, num_tokens: int) -> int:
        """A radix hit: `to_row` reads the pages that `from_row` has filled. Returns tokens."""
        pages = num_tokens // PAGE_SIZE
        self.page_table[to_row, :pages] = self.page_table[from_row, :pages]
        self.lens[to_row] = pages * PAGE_SIZE
        return pages * PAGE_SIZE

    @torch.inference_mode()
    def logits(self, tokens: list[int], row: int = 0, chunk: int | None = None) -> Tensor:
        """Prefills `tokens` from an empty row, `chunk` at a time: [len(tokens), vocab]."""
        self.lens[row] = 0
        size = chunk or len(tokens)
        pieces = [tokens[i : i + size] for i in range(0, len(tokens), size)]
        return torch.cat([self.step({row: piece}) for piece in pieces])

    @torch.inference_mode()
    def greedy(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        """Prefills all prompts in one batch, then decodes them together."""
        self.lens = dict.fromkeys(range(len(prompts)), 0)
        logits = self.step(dict(enumerate(prompts)))
        out: list[list[int]] = [[] for _ in prompts]
        for i in range(num_new):
            ends = _ends([len(prompts[row]) if i == 0 else 1 for row in self.order])
            for row, end in zip(self.order, ends, strict=True):
                out[row].append(int(logits[end - 1].argmax()))
            if i + 1 < num_new:
                logits = self.step({row: [out[row][-1]] for row in range(len(prompts))})
        return out


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _ends(lens: list[int]) -> list[int]:
    return [sum(lens[: i + 1]) for i in range(len(lens))]


def load(source: Path, tp: TensorParallel | None = None, **config: Any) -> Runner:
    """The model of a checkpoint in float32 on the CPU. `config` goes to load_model_config."""
    tp = tp or TensorParallel()
    model = build_model(load_model_config(source, **config), tp, torch.device("cpu"), torch.float32)
    load_weights(model, model.weight_table(), source, tp)
    return Runner(model)


def random_tokens(count: int, seed: int = 0) -> list[int]:
    """Ids that every tiny vocabulary has and that are no special tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(3, 320, (count,), generator=generator).tolist()
    return ids


def relative_error(out: Tensor, ref: Tensor) -> float:
    return float((out - ref).abs().max() / ref.abs().max())
