"""Fills a model from a checkpoint, strictly: nothing unknown, missing, double or misshapen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from srt.errors import LoadError
from srt.ops.fp8 import row_scales, store_rows
from srt.parallel import TensorParallel
from srt.quant_config import GROUP
from srt.weights.checkpoint import Slice, StoredTensor, open_checkpoint
from srt.weights.dummy import fill_dummy
from srt.weights.progress import Progress
from srt.weights.table import HasColumns, HasParts, Match, Part, Rule, Split, WeightTable

OPTIONAL = ("kv_scales.values",)  # parameters that a checkpoint may leave as they were made
WIDE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_weights(
    model: nn.Module,
    rules: tuple[Rule, ...],
    source: Path,
    tp: TensorParallel,
    *,
    load_format: str = "auto",
) -> None:
    """Fills every parameter of `model`; each rank reads its own slices only.

    Args:
        model: as built by `models.registry.build_model`, on its device.
        rules: its weight table, `model.weight_table()`.
        source: a checkpoint folder or a GGUF file; unused for dummy weights.
        load_format: `--load-format`.

    Raises:
        LoadError: naming the tensor, its file and the shapes.
    """
    if load_format == "dummy":
        fill_dummy(model)
        return
    checkpoint = open_checkpoint(source, load_format, tp)
    filler = Filler(model, rules, tp, is_presharded=checkpoint.is_presharded)
    with Progress(checkpoint.num_bytes(), visible=tp.rank == 0) as progress:
        for tensor in checkpoint.tensors():
            filler.fill(tensor)
            progress.add(tensor.file, tensor.num_bytes)
    filler.check_complete()


def check_weights(
    model: nn.Module,
    rules: tuple[Rule, ...],
    source: Path,
    tp: TensorParallel,
    *,
    load_format: str = "auto",
) -> None:
    """Does all that `load_weights` does, reading included, but changes no parameter.

    Raises:
        LoadError: as `load_weights` would.
    """
    if load_format == "dummy":
        return
    checkpoint = open_checkpoint(source, load_format, tp)
    filler = Filler(model, rules, tp, is_trial=True, is_presharded=checkpoint.is_presharded)
    for tensor in checkpoint.tensors():
        filler.fill(tensor)
    filler.check_complete()


class Filler:
    """Takes stored tensors one by one and copies this rank's slices into the parameters.

    is_trial: everything is read and checked, and nothing is copied.
    is_presharded: tensors may hold this rank's share alone.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: tuple[Rule, ...],
        tp: TensorParallel,
        *,
        is_trial: bool = False,
        is_presharded: bool = False,
    ) -> None:
        self.tp = tp
        self.is_presharded = is_presharded
        self.is_trial = is_trial
        self.params = dict(model.named_parameters())
        # A table without scales is of a wide checkpoint, whose matrices are quantized on their way.
        self.quantizes = not any((rule.target or "").endswith("weight_scale") for rule in rules)
        self.table = WeightTable(rules)
        self.parts = {name: _parts_of(model, name) for name in self.params}
        self.columns = {name: _columns_of(model, name) for name in self.params}
        self.filled: dict[str, Counter[tuple[str, int | None]]] = {
            n: Counter() for n in self.params
        }

    def fill(self, tensor: StoredTensor) -> None:
        """Puts one stored tensor where its rule says. Raises LoadError if it does not fit."""
        match = self.table.match(tensor.name)
        if match is None:
            raise LoadError(f"{tensor} is not in the model's weight table")
        if match.target is None:
            return
        if match.target not in self.params:
            raise LoadError(
                f"{tensor} belongs to {match.target}, which the model's config leaves out"
            )
        if match.rule.shape is not None:
            tensor = _expanded(tensor, match.rule.shape)
        if match.rule.broadcast or match.rule.block_rows:
            tensor = self._one_a_row(match, tensor)
        if match.rule.runs is not None:
            tensor = _reordered(tensor, match.rule.runs)
        for each, stored in self._unstacked(match, tensor):
            self._fill_one(each, stored)

    def _fill_one(self, match: Match, tensor: StoredTensor) -> None:
        """Puts what fills one parameter, or one entry of a stacked one, in its place."""
        if self._is_elsewhere(match):
            return
        names = match.rule.parts or ("",)
        for part_name in names:
            self._count(match, part_name, tensor)
            self._copy(match, part_name, tensor)

    def check_complete(self) -> None:
        """Raises LoadError naming the parameters that no tensor has filled."""
        missing = [
            name
            for name in self.params
            if not self._is_full(name) and (name not in OPTIONAL or self.filled[name])
        ]
        if missing:
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            raise LoadError(
                f"the checkpoint does not fill {len(missing)} parameters: {shown}; it lacks "
                + " or ".join(self._sources_of_first_gap(missing[0]))
            )

    def _sources_of_first_gap(self, name: str) -> list[str]:
        """Names of the tensor that a parameter lacks; several where checkpoints spell it so."""
        filled = self.filled[name]
        is_plain = not any(r.stacked or r.unstack for r in self.table.rules_of(name))
        indices = [None] if is_plain else list(range(self.params[name].shape[0]))
        gaps = [
            (part, index)
            for index in indices
            for part in self.parts[name] or ("",)
            if not filled[part, index]
        ]
        sources = [s for part, index in gaps[:1] for s in self.table.sources(name, part, index)]
        return sources or [name]

    def _is_full(self, name: str) -> bool:
        filled = self.filled[name]
        indices: set[int | None] = {index for _, index in filled}
        num_indices = 1 if None in indices else self.params[name].shape[0]
        return len(filled) == num_indices * max(1, len(self.parts[name]))

    def _count(self, match: Match, part_name: str, tensor: StoredTensor) -> None:
        target = str(match.target)
        filled = self.filled[target]
        filled[part_name, match.index] += 1
        if filled[part_name, match.index] > 1:
            where = f" part {part_name}" if part_name else ""
            raise LoadError(f"{tensor} fills {target}{where} a second time")

    def _copy(self, match: Match, part_name: str, tensor: StoredTensor) -> None:
        target = str(match.target)
        dest = self.params[target].data
        parts = self.parts[target]
        if match.index is not None:
            dest = dest[self._local_index(match, dest.shape[0], tensor)]
        cut, dest, expected = self._plan(match.rule, part_name, parts, self.columns[target], dest)
        if self.is_presharded and tensor.shape == dest.shape:
            cut, expected = None, tensor.shape  # the file holds this rank's share already
        if tensor.shape != expected:
            raise LoadError(f"{tensor} must have the shape {list(expected)} to fill {target}")
        if self.quantizes and dest.dtype == torch.float8_e4m3fn:
            self._quantize(match, part_name, dest, tensor, cut)
            return
        value = tensor.read(cut)
        _check_dtype(dest, value, tensor)
        if self.is_trial:
            if target in OPTIONAL and not torch.equal(dest, value.to(dest)):
                raise LoadError(f"{tensor} differs from what the KV pool is scaled with")
            return
        others = sum(index == match.index for _, index in self.filled[target]) - 1
        if match.rule.largest and others:
            value = torch.maximum(value.to(dest), dest)
        dest.copy_(value)

    def _quantize(
        self, match: Match, part_name: str, dest: Tensor, tensor: StoredTensor, cut: Slice | None
    ) -> None:
        """Fills rows of an fp8 matrix, and their scales, from wider values.

        A row is scaled by all of its values, also where this rank holds a part of them, so that
        every tensor-parallel size has the same weights.
        """
        scale_name = f"{match.target}_scale"
        self.filled[scale_name][part_name, match.index] += 1
        by_columns = cut is not None and cut.dim == len(tensor.shape) - 1
        value = tensor.read(None if by_columns else cut)
        if value.dtype not in WIDE:
            raise LoadError(f"{tensor} is {value.dtype}, which cannot be quantized")
        if self.is_trial:
            return
        value = value.to(dest.device)
        scales = row_scales(value)
        if cut is not None and by_columns:
            value = value.narrow(cut.dim, cut.start, cut.size)
        dest.copy_(store_rows(value, scales))
        into = self.params[scale_name].data
        if match.index is not None:
            into = into[self._local_index(match, into.shape[0], tensor)]
        part = self.parts[str(match.target)].get(part_name)
        offset = 0 if part is None else part.offset
        into[offset : offset + scales.shape[0]] = scales

    def _one_a_row(self, match: Match, tensor: StoredTensor) -> StoredTensor:
        """Stored scales as one (block: one row of them) per row of the matrix they belong to."""
        parts = self.parts[str(match.target)]
        rows = sum(parts[name].full for name in match.rule.parts or ("",)) if parts else 0
        rows = rows or self.params[str(match.target)].shape[0 if match.index is None else 1]
        values = tensor.read(None)
        if block := match.rule.block_rows:
            if values.dim() != 2 or values.shape[0] != -(-rows // block):
                raise LoadError(
                    f"{tensor} must hold scales of {-(-rows // block)} blocks of {block} rows to "
                    f"fill {match.target}"
                )
            return _in_memory(tensor, values.repeat_interleave(block, dim=0)[:rows])
        values = values.flatten()
        if values.numel() not in (1, rows):
            raise LoadError(f"{tensor} must hold 1 or {rows} scales to fill {match.target}")
        return _in_memory(tensor, values.expand(rows))

    def _unstacked(
        self, match: Match, tensor: StoredTensor
    ) -> Iterator[tuple[Match, StoredTensor]]:
        """The entries of a tensor that holds a whole stack; otherwise the tensor itself."""
        if not match.rule.unstack:
            yield match, tensor
            return
        target, is_row = str(match.target), match.rule.split is Split.ROW
        count, out_size, in_size = self.params[target].shape
        rows = sum(self.parts[target][name].full for name in match.rule.parts)
        rows, columns = (in_size * self.tp.size, out_size) if is_row else (rows, in_size)
        if tensor.shape != (count * rows, columns):
            raise LoadError(
                f"{tensor} must have the shape {[count * rows, columns]} to fill {target}"
            )
        for index in range(count):
            entry = _entry(tensor, index, rows, transposed=is_row)
            yield Match(match.rule, match.target, index), entry

    def _is_elsewhere(self, match: Match) -> bool:
        """Whether a stacked entry belongs to another rank."""
        if match.rule.split is not Split.INDEX or match.index is None:
            return False
        part = self.parts[str(match.target)][""]
        mine = part.start <= match.index < part.start + part.size
        return not mine and match.index < part.full

    def _local_index(self, match: Match, num_entries: int, tensor: StoredTensor) -> int:
        """Where a stacked entry lies in this rank's parameter."""
        index = int(match.index or 0)
        if match.rule.split is Split.INDEX:
            index -= self.parts[str(match.target)][""].start
        if index >= num_entries:
            raise LoadError(f"{tensor} is one too many: {match.target} holds {num_entries} entries")
        return index

    def _plan(
        self,
        rule: Rule,
        part_name: str,
        parts: dict[str, Part],
        columns: Part | None,
        dest: Tensor,
    ) -> tuple[Slice | None, Tensor, tuple[int, ...]]:
        """Which slice of the stored tensor, where it goes, and the shape the whole must have."""
        shape = tuple(dest.shape)
        if rule.split in (Split.NONE, Split.INDEX):
            return None, dest, shape
        if rule.split is Split.ROW:
            size = shape[-1]
            even = Part(size * self.tp.size, self.tp.rank * size, size, 0)
            columns = columns or even
            if rule.block_rows and columns is not even:  # of scales: one column for a group
                groups = -(-columns.full // GROUP)
                columns = Part(groups, columns.start // GROUP, size, 0)
            cut = Slice(len(shape) - 1, columns.start, size)
            return cut, dest, (*shape[:-1], columns.full)
        if not parts:
            parts = {"": Part(shape[0] * self.tp.size, self.tp.rank * shape[0], shape[0], 0)}
        part = parts[part_name]
        before = 0
        for name in rule.parts[: rule.parts.index(part_name)] if rule.parts else ():
            before += parts[name].full
        rows = sum(parts[name].full for name in rule.parts or ("",))
        if rule.split is Split.VOCAB:
            dest[part.size :].zero_()
        cut = Slice(0, before + part.start, part.size)
        return cut, dest.narrow(0, part.offset, part.size), (rows, *shape[1:])


def _columns_of(model: nn.Module, param_name: str) -> Part | None:
    """The columns that a parameter holds, where its module says so."""
    owner = model.get_submodule(param_name.rpartition(".")[0])
    return owner.columns if isinstance(owner, HasColumns) else None


def _parts_of(model: nn.Module, param_name: str) -> dict[str, Part]:
    """How the rows of a parameter are laid out; empty for a module that does not say."""
    owner = model.get_submodule(param_name.rpartition(".")[0])
    return dict(owner.parts) if isinstance(owner, HasParts) else {}


def _reordered(
    tensor: StoredTensor, runs: Callable[[int, int], list[tuple[int, int]]]
) -> StoredTensor:
    """The stored tensor with its rows in the model's order; reads the asked ones only."""

    def read(cut: Slice | None) -> Tensor:
        start, size = (0, tensor.shape[0]) if cut is None else (cut.start, cut.size)
        return torch.cat([tensor.read(Slice(0, *run)) for run in runs(start, size)])

    return replace(tensor, read=read)


def _entry(tensor: StoredTensor, index: int, rows: int, *, transposed: bool) -> StoredTensor:
    """The index-th entry of so many rows; reads the asked ones only."""
    columns = tensor.shape[1]

    def read(cut: Slice | None) -> Tensor:
        start, size = (0, rows) if cut is None else (cut.start, cut.size)
        value = tensor.read(Slice(0, index * rows + start, size))
        return value.t() if transposed else value

    return replace(tensor, shape=(columns, rows) if transposed else (rows, columns), read=read)


def _expanded(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """A stored number as so many equal ones."""
    value = tensor.read(None)
    if value.numel() != 1:
        raise LoadError(f"{tensor} must hold one number")
    return _in_memory(tensor, value.reshape(()).expand(shape))


def _in_memory(tensor: StoredTensor, whole: Tensor) -> StoredTensor:
    """The stored tensor with another value, which is in memory already."""

    def read(cut: Slice | None) -> Tensor:
        return whole if cut is None else whole.narrow(cut.dim, cut.start, cut.size)

    return replace(tensor, shape=tuple(whole.shape), read=read)


def _check_dtype(dest: Tensor, value: Tensor, tensor: StoredTensor) -> None:
    """A copy may change the dtype among floats of 16 bits or more only. Raises LoadError."""
    if value.dtype != dest.dtype and not (value.dtype in WIDE and dest.dtype in WIDE):
        raise LoadError(f"{tensor} is {value.dtype}, the parameter is {dest.dtype}")
