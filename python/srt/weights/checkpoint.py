"""Reading checkpoint files tensor by tensor, and only the slice that is asked for."""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from srt.errors import LoadError
from srt.gguf_file import GgufFile
from srt.hf_config import read_json
from srt.parallel import TensorParallel

RANK_FILE = re.compile(r"-(\d{3})\.bin$")
AHEAD_BYTES = 64 << 20
LOAD_FORMATS = ("auto", "safetensors", "pt", "gguf", "dummy")


@dataclass(frozen=True, slots=True)
class Slice:
    """`size` entries from `start` along `dim`."""

    dim: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a checkpoint file; `read` brings (a slice of) it into host memory.

    num_bytes: about its share of the file, for the progress bar.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    num_bytes: int
    read: Callable[[Slice | None], Tensor]

    def __str__(self) -> str:
        return f"tensor {self.name} {list(self.shape)} in {self.file.name}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weight files of one model, all in one format.

    is_presharded: they are one rank's of a set that was cut for a number of ranks; some tensors
        are whole, others this rank's share.
    """

    files: tuple[Path, ...]
    file_format: str
    is_presharded: bool = False

    def tensors(self) -> Iterator[StoredTensor]:
        """Every tensor, file by file. Raises LoadError for a file that cannot be read."""
        readers = {"safetensors": _safetensors, "pt": _pickled, "gguf": _gguf}
        for file in self.files:
            yield from readers[self.file_format](file)

    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def open_checkpoint(source: Path, load_format: str, tp: TensorParallel | None = None) -> Checkpoint:
    """Finds the weight files of a model.

    Args:
        source: a checkpoint folder, or a GGUF file.
        load_format: `--load-format`; auto takes safetensors before .bin.
        tp: whose files are meant where they are cut by rank; None: the only rank's.

    Raises:
        LoadError: nothing of that format is there, or an index names a missing file.
    """
    if load_format not in LOAD_FORMATS or load_format == "dummy":
        raise LoadError(
            f"--load-format {load_format} is not supported; use {', '.join(LOAD_FORMATS)}"
        )
    if source.is_file():
        if source.suffix != ".gguf" or load_format not in ("auto", "gguf"):
            raise LoadError(
                f"{source} is a file: only --load-format gguf (or auto) takes a .gguf file"
            )
        return Checkpoint((source,), "gguf")
    formats = ("safetensors", "pt", "gguf") if load_format == "auto" else (load_format,)
    for file_format in formats:
        if file_format == "pt" and (cut := _presharded(source, tp or TensorParallel())):
            return Checkpoint(cut, "pt", is_presharded=True)
        if files := _find_files(source, file_format):
            return Checkpoint(files, file_format)
    raise LoadError(f"{source} holds no weights in the format {' or '.join(formats)}")


def _presharded(folder: Path, tp: TensorParallel) -> tuple[Path, ...]:
    """This rank's files where they are named *-000.bin, *-001.bin, … by rank (Grok-1); else none.

    Raises LoadError where the set was cut for another number of ranks.
    """
    by_rank: dict[int, list[Path]] = {}
    for file in sorted(folder.glob("*.bin")):
        if found := RANK_FILE.search(file.name):
            by_rank.setdefault(int(found[1]), []).append(file)
    if by_rank and sorted(by_rank) != list(range(tp.size)):
        names = ", ".join(f"-{rank:03d}.bin" for rank in sorted(by_rank))
        raise LoadError(
            f"{folder} is cut for {len(by_rank)} ranks ({names}): --tp-size must be "
            f"{len(by_rank)}, not {tp.size}"
        )
    return tuple(by_rank.get(tp.rank, ()))


def _find_files(folder: Path, file_format: str) -> tuple[Path, ...]:
    """The files an index names; without an index, the files named as HF names them."""
    if file_format == "gguf":
        return tuple(sorted(folder.glob("*.gguf")))[:1]
    stem, suffix = (
        ("model", "safetensors") if file_format == "safetensors" else ("pytorch_model", "bin")
    )
    index_path = folder / f"{stem}.{suffix}.index.json"
    if index_path.exists():
        names = read_json(index_path).get("weight_map")
        if not isinstance(names, dict):
            raise LoadError(f"{index_path} has no weight_map")
        files = tuple(sorted(folder / name for name in set(names.values())))
        if missing := [f.name for f in files if not f.exists()]:
            raise LoadError(f"{index_path} names files that are missing: {', '.join(missing)}")
        return files
    return tuple(sorted(folder.glob(f"{stem}*.{suffix}")) or sorted(folder.glob(f"*.{suffix}")))


class _ReadAhead:
    """Asks the system to bring a file in ahead of who reads it from front to back.

    Copying then does not wait for the disk, nor the disk for copying.
    """

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_RDONLY)
        self._asked = 0

    def reach(self, offset: int) -> None:
        """Tells that what stands before `offset` is about to be read."""
        while offset + AHEAD_BYTES // 2 > self._asked:
            os.posix_fadvise(self._fd, self._asked, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
            self._asked += AHEAD_BYTES

    def close(self) -> None:
        os.close(self._fd)


def _safetensors(file: Path) -> Iterator[StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened, closing(_ReadAhead(file)) as ahead:
            names = opened.offset_keys()
            views = {name: opened.get_slice(name) for name in names}
            bytes_each = _bytes_each(file, [tuple(view.get_shape()) for view in views.values()])
            offset = 0
            for name, view in views.items():
                shape = tuple(view.get_shape())
                num_bytes = int(bytes_each * math.prod(shape))
                offset += num_bytes
                ahead.reach(offset)

                def read(cut: Slice | None, name: str = name, view: object = view) -> Tensor:
                    if cut is None:
                        whole: Tensor = opened.get_tensor(name)
                        return whole
                    index = (slice(None),) * cut.dim + (slice(cut.start, cut.start + cut.size),)
                    return view[index]  # type: ignore[index, no-any-return]

                yield StoredTensor(name, file, shape, num_bytes, read)
    except (SafetensorError, OSError) as e:
        raise LoadError(f"{file} is not a readable safetensors file: {e}") from e


def _pickled(file: Path) -> Iterator[StoredTensor]:
    """A torch.save file: tensors only, memory-mapped where its format allows."""
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of before torch 1.6 are no zip archives and cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as e:
        raise LoadError(f"{file} is not a readable file of tensors: {e}") from e
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise LoadError(f"{file}: entry {name} is a {type(tensor).__name__}, not a tensor")
        yield StoredTensor(name, file, tuple(tensor.shape), tensor.nbytes, _cutter(tensor))


def _bytes_each(file: Path, shapes: list[tuple[int, ...]]) -> float:
    """Bytes of the file for every element in it."""
    return file.stat().st_size / max(1, sum(math.prod(shape) for shape in shapes))


def _cutter(tensor: Tensor) -> Callable[[Slice | None], Tensor]:
    def read(cut: Slice | None) -> Tensor:
        return tensor if cut is None else tensor.narrow(cut.dim, cut.start, cut.size)

    return read


def _gguf(file: Path) -> Iterator[StoredTensor]:
    opened = GgufFile(file)
    names = opened.tensor_names()
    bytes_each = _bytes_each(file, [opened.shape(name) for name in names])
    for name in names:
        shape = opened.shape(name)

        def read(cut: Slice | None, name: str = name) -> Tensor:
            whole = torch.from_numpy(opened.dequantize(name))
            return whole if cut is None else whole.narrow(cut.dim, cut.start, cut.size)

        yield StoredTensor(name, file, shape, int(bytes_each * math.prod(shape)), read)
