"""Every family's tiny checkpoint, made once, and the reference that it is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.renamed import MAKERS
from srt.tiny import FAMILIES, write_tiny

ALL = (*FAMILIES, *MAKERS)


@dataclass(frozen=True)
class Checkpoint:
    """reference: ids int64 [1, T] → something with logits [1, T, vocab], float32."""

    folder: Path
    reference: Callable[[Tensor], Any]

    @torch.no_grad()
    def logits(self, tokens: list[int]) -> Tensor:
        """What is right: [len(tokens), vocab]."""
        logits: Tensor = self.reference(torch.tensor([tokens])).logits[0]
        return logits

    def assert_greedy(self, prompt: list[int], output: list[int]) -> None:
        """Every output token is the reference's best after all before it."""
        logits = self.logits(prompt + output)[len(prompt) - 1 : -1]
        assert output == logits.argmax(dim=-1).tolist()


def make(folder: Path, family: str, **changes: Any) -> Checkpoint:
    """Writes a family's checkpoint. `changes` go to the config of a transformers family."""
    if family in MAKERS:
        assert not changes
        return Checkpoint(folder, MAKERS[family](folder))
    model: Any = write_tiny(folder, family, **changes)
    return Checkpoint(folder, model)


class Cache:
    """Checkpoints by family, each made at its first use."""

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        self._make_folder = make_folder
        self._made: dict[str, Checkpoint] = {}

    def __getitem__(self, family: str) -> Checkpoint:
        if family not in self._made:
            self._made[family] = make(self._make_folder(family), family)
        return self._made[family]
