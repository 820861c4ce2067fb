"""Turns a tiny checkpoint into an fp8 one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srt.ops.fp8 import quantize_rows


def is_matrix(name: str) -> bool:
    return "layers" in name and name.endswith("proj.weight")


def write_fp8(folder: Path, *, per_row: bool, method: dict[str, Any]) -> None:
    """Turns a checkpoint into an fp8 one, with a scale a row or a tensor."""
    weights = load_file(folder / "model.safetensors")
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not is_matrix(name):
            out[name] = value
            continue
        rows = value if per_row else value.reshape(1, -1)
        stored, scales = quantize_rows(rows)
        out[name] = stored.reshape(value.shape)
        stem = name.removesuffix("weight")
        out[f"{stem}weight_scale"] = scales.unsqueeze(1) if per_row else scales[0]
        out[f"{stem}input_scale"] = torch.tensor(0.5)
    save_file(out, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
