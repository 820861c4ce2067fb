"""The weight table: which checkpoint tensor fills which parameter, and how ranks share it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Part:
    """This rank's rows (dim 0) of one part of a fused or padded parameter.

    full: its rows in the checkpoint.  start, size: this rank's rows of those.
    offset: where they lie in this rank's parameter.
    """

    full: int
    start: int
    size: int
    offset: int


@runtime_checkable
class HasParts(Protocol):
    """A module whose parameters' rows are laid out in parts; "" names an unfused whole."""

    parts: Mapping[str, Part]


@runtime_checkable
class HasColumns(Protocol):
    """A module whose matrix holds these columns of the checkpoint's."""

    columns: Part


class Split(Enum):
    """How a checkpoint tensor is cut over the ranks."""

    NONE = "none"  # every rank holds all of it
    COLUMN = "column"  # along dim 0: output features; fused parameters cut each part by itself
    ROW = "row"  # along the last dim: input features
    VOCAB = "vocab"  # along dim 0; rows beyond the vocabulary are zero
    INDEX = "index"  # stacked entries are dealt out whole


@dataclass(frozen=True)
class Rule:
    """One line of a weight table.

    Attributes:
        source: the checkpoint's name; each `{}` stands for a number.
        target: the parameter's name with as many `{}`; None: the tensor is skipped, on purpose.
        split: how it is cut.
        part: which part of a fused parameter it is; several where the checkpoint is fused as well,
            in the order in which they lie along dim 0.
        stacked: the last number indexes dim 0 of the target (experts).
        unstack: the tensor holds the rows of all entries of a stacked target, entry by entry;
            with Split.ROW each entry is transposed.
        broadcast: the tensor holds one value a row, or one for all rows (scales).
        runs: where the checkpoint orders rows its own way: rows [start, start + size) as the model
            counts them → runs (start, size) of the checkpoint's rows, in that order.
        block_rows: the tensor holds one row for so many rows of the target (scales of blocks).
        largest: the target keeps the largest of the values that come for it (input scales).
        shape: the tensor holds one number, which becomes so many equal ones (scales).
    """

    source: str
    target: str | None
    split: Split = Split.NONE
    part: str | tuple[str, ...] | None = None
    stacked: bool = False
    runs: Callable[[int, int], list[tuple[int, int]]] | None = None
    broadcast: bool = False
    block_rows: int = 0
    largest: bool = False
    shape: tuple[int, ...] | None = None
    unstack: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.source).replace(r"\{\}", r"(\d+)"))

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts it fills; empty for a parameter that is not fused."""
        return (self.part,) if isinstance(self.part, str) else self.part or ()


@dataclass(frozen=True, slots=True)
class Match:
    """A checkpoint tensor that has found its rule. `index` is its place in a stacked target."""

    rule: Rule
    target: str | None
    index: int | None


class WeightTable:
    """The rules of one model, looked up by checkpoint name."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self._plain = {rule.source: rule for rule in rules if "{}" not in rule.source}
        self._numbered: dict[str, list[Rule]] = {}
        for rule in rules:
            if "{}" in rule.source:
                self._numbered.setdefault(_shape_of_name(rule.source), []).append(rule)

    def match(self, name: str) -> Match | None:
        """The rule for a checkpoint name, or None if the table does not know it."""
        if rule := self._plain.get(name):
            return Match(rule, rule.target, None)
        for rule in self._numbered.get(_shape_of_name(name), ()):
            if found := rule.pattern.fullmatch(name):
                return _fill(rule, found.groups())
        return None

    def rules_of(self, target: str) -> list[Rule]:
        """The rules that fill a parameter."""
        return [rule for rule in self.rules if rule.target and _numbers(rule.target, target)]

    def sources(self, target: str, part: str, index: int | None) -> list[str]:
        """The checkpoint names that would fill (a part of, an entry of) a parameter."""
        names = []
        for rule in self.rules_of(target):
            if part not in (rule.parts or ("",)):
                continue
            found = _numbers(str(rule.target), target)
            assert found is not None
            numbers = (*found.groups(), str(index)) if rule.stacked else found.groups()
            names.append(rule.source.format(*numbers))
        return names


def _numbers(pattern: str, name: str) -> re.Match[str] | None:
    """The match of a name with `{}` for numbers."""
    return re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), name)


def sources_of(rules: tuple[Rule, ...], target: str, num_entries: int) -> dict[str, bool]:
    """What a checkpoint may call a parameter's tensors, and whether each fills all of it.

    Args:
        num_entries: of a stacked parameter.
    """
    out: dict[str, bool] = {}
    for rule in rules:
        if rule.target is None:
            continue
        found = _numbers(rule.target, target)
        if found is None:
            continue
        is_whole = not rule.stacked and len(rule.parts) != 1
        indices = [(str(i),) for i in range(num_entries)] if rule.stacked else [()]
        for index in indices:
            out[rule.source.format(*found.groups(), *index)] = is_whole
    return out


def _shape_of_name(name: str) -> str:
    """A name with every number (or `{}`) blanked: what a rule and the names it matches share."""
    return re.sub(r"\{\}|\d+", "#", name)


def _fill(rule: Rule, numbers: tuple[str, ...]) -> Match:
    index = int(numbers[-1]) if rule.stacked else None
    kept = numbers[:-1] if rule.stacked else numbers
    return Match(rule, None if rule.target is None else rule.target.format(*kept), index)
