"""What safetensors files hold, from their headers alone; no torch."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from srt.errors import LoadError

MAX_HEADER_BYTES = 100_000_000  # what the format allows


@dataclass(frozen=True, slots=True)
class HeaderTensor:
    """A tensor as its file's header describes it. dtype: the format's name, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read_header(file: Path) -> list[HeaderTensor]:
    """The tensors of one file. Raises LoadError for a file that is no safetensors file."""
    try:
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            if size > MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {size} bytes")
            entries = json.loads(opened.read(size))
        return [
            HeaderTensor(
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error) as e:
        raise LoadError(f"{file} is not a readable safetensors file: {e}") from e


def read_folder(folder: Path) -> list[HeaderTensor]:
    """The tensors of all safetensors files of a checkpoint folder; empty where there are none."""
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    return [tensor for file in files for tensor in read_header(file)]
