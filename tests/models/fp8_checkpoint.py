"""Turns a tiny checkpoint into an fp8 one, in any of the formats that we read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srt.ops.fp8 import quantize_rows

BLOCK = 128
WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
TOKENS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}


def compressed(
    strategy: str, inputs: dict[str, Any] | None = TOKENS, **more: Any
) -> dict[str, Any]:
    """A quantization_config of compressed-tensors."""
    weights = WEIGHTS | {"strategy": strategy}
    if strategy == "block":
        weights |= {"block_structure": [BLOCK, BLOCK]}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    } | more


# name: how the weights are scaled ("row", "tensor", "block"), quantization_config
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "static per tensor": (
        "tensor",
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
    ),
    "dynamic per tensor": ("tensor", {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "compressed-tensors by channel": ("row", compressed("channel")),
    "compressed-tensors by tensor, static": (
        "tensor",
        compressed("tensor", TOKENS | {"dynamic": False, "strategy": "tensor"}),
    ),
    "compressed-tensors, weights alone": ("row", compressed("channel", None)),
    "compressed-tensors in blocks": (
        "block",
        compressed("block", TOKENS | {"strategy": "group", "group_size": BLOCK}),
    ),
    "fbgemm": (
        "row",
        {
            "quant_method": "fbgemm_fp8",
            "activation_scale_ub": 1200.0,
            "modules_to_not_convert": ["lm_head"],
        },
    ),
    "deepseek": (
        "block",
        {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
        },
    ),
}


def is_matrix(name: str) -> bool:
    """Whether it is a matrix of a decoder layer that is not a router."""
    expert = name.endswith((".w1.weight", ".w2.weight", ".w3.weight"))
    return "layers" in name and (name.endswith("proj.weight") or expert)


def is_static(method: Mapping[str, Any]) -> bool:
    """Whether the checkpoint holds scales of the activations."""
    groups = method.get("config_groups", {}).values()
    inputs = [group["input_activations"] for group in groups if group["input_activations"]]
    return method.get("activation_scheme") == "static" or any(not i["dynamic"] for i in inputs)


def quantize_blocks(value: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] → e4m3 [N, K] and scales [ceil(N / 128), ceil(K / 128)]."""
    rows, cols = (-(-size // BLOCK) for size in value.shape)
    padded = torch.zeros(rows * BLOCK, cols * BLOCK)
    padded[: value.shape[0], : value.shape[1]] = value
    blocks = padded.view(rows, BLOCK, cols, BLOCK).transpose(1, 2)
    stored, scales = quantize_rows(blocks.flatten(2))
    whole = stored.view(blocks.shape).transpose(1, 2).reshape(padded.shape)
    return whole[: value.shape[0], : value.shape[1]].contiguous(), scales


def widen(stored: Tensor, scales: Tensor) -> Tensor:
    """A matrix by its scales: one, one a row ([N, 1]), or one a block."""
    wide = stored.float()
    if scales.numel() == 1 or scales.shape == (stored.shape[0], 1):
        return wide * scales.float()
    by_row = scales.repeat_interleave(BLOCK, 0)[: stored.shape[0]]
    return wide * by_row.repeat_interleave(BLOCK, 1)[:, : stored.shape[1]]


def write_fp8(
    folder: Path,
    weights: str,
    method: Mapping[str, Any],
    *,
    is_quantized: Callable[[str], bool] = is_matrix,
    kv_scales: bool = False,
) -> dict[str, Tensor]:
    """Turns a checkpoint into an fp8 one; returns the wide weights that it stands for.

    Args:
        weights: "row", "tensor" or "block".
        method: its quantization_config.
    """
    out: dict[str, Tensor] = {}
    wide: dict[str, Tensor] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        stem = name.removesuffix("weight")
        if not is_quantized(name):
            out[name] = wide[name] = value
            continue
        if weights == "row":
            stored, flat = quantize_rows(value)
            scales = flat.unsqueeze(1)
        elif weights == "tensor":
            stored, flat = quantize_rows(value.reshape(1, -1))
            stored, scales = stored.view(value.shape), flat[0]
        else:
            stored, scales = quantize_blocks(value)
        suffix = "weight_scale_inv" if "weight_block_size" in method else "weight_scale"
        out[name], out[f"{stem}{suffix}"] = stored, scales
        wide[name] = widen(stored, scales)
        if is_static(method):
            out[f"{stem}input_scale"] = torch.tensor(0.25 + 0.01 * len(out))
        if method["quant_method"] == "fbgemm_fp8":
            out[f"{stem}input_scale_ub"] = torch.tensor([1200.0])
        if kv_scales and name.endswith("q_proj.weight"):
            attn = name.removesuffix("q_proj.weight")
            out[f"{attn}k_scale"] = torch.tensor([0.5 + len(out) / 64])
            out[f"{attn}v_scale"] = torch.tensor(0.25 + len(out) / 64)
    save_file(out, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    new = config | {"quantization_config": dict(method)}
    (folder / "config.json").write_text(json.dumps(new))
    return wide
