"""How a checkpoint's weights are quantized, as far as we serve it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from srt.errors import LoadError
from srt.hf_config import HfConfig

GROUP = 128  # values along a matrix's input side that share a scale, where there are groups

Weights = Literal["row", "block"]
Activations = Literal["token", "tensor", "group", "wide"]

INSTEAD = "serve the 16-bit checkpoint with --quantization fp8, or an fp8 checkpoint as it is"
UNSUPPORTED = {  # methods of the seed's time, and what to use in their place
    "awq": INSTEAD,
    "gptq": INSTEAD,
    "marlin": INSTEAD,
    "gptq_marlin": INSTEAD,
    "awq_marlin": INSTEAD,
    "squeezellm": INSTEAD,
    "bitsandbytes": INSTEAD,
}


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """The matrices of the decoder layers in fp8 e4m3; lm_head, embeddings and routers stay wide.

    in_checkpoint: they are stored so; otherwise they are quantized while they are loaded.
    weights: "row": a scale per output row (or one per tensor, repeated); "block": one per
        `block_rows` x 128 values.
    activations: "token": a scale per token, made on the fly; "tensor": one in the checkpoint;
        "group": one per token and 128 values, made on the fly; "wide": not quantized.
    activation_limit: scales per token cover magnitudes up to this one only; 0: all.
    targets, kept: names of modules that are, and are not, quantized. See `is_quantized`.
    """

    in_checkpoint: bool
    weights: Weights = "row"
    block_rows: int = GROUP
    activations: Activations = "token"
    activation_limit: float = 0.0
    targets: tuple[str, ...] = ("Linear",)
    kept: tuple[str, ...] = ()

    def is_quantized(self, module: str) -> bool:
        """Whether the linear that the checkpoint calls `module` is in fp8."""
        if any(_names(pattern, module) for pattern in self.kept):
            return False
        return any(t == "Linear" or _names(t, module) for t in self.targets)


def _names(pattern: str, module: str) -> bool:
    """`re:` patterns match from the start; other names are a path, or a part of one, in dots."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return f".{pattern}." in f".{module}."


def read_quant(hf: HfConfig) -> QuantConfig | None:
    """The checkpoint's quantization. Raises LoadError for any that we cannot serve."""
    quant = hf.nested("quantization_config") or hf.nested("compression_config")
    if quant is None:
        return None
    method = quant.text("quant_method")
    readers = {
        "fp8": _read_fp8,
        "fbgemm_fp8": _read_fbgemm,
        "compressed-tensors": _read_compressed,
    }
    if method in readers:
        return readers[method](quant)
    served = ", ".join(readers)
    instead = UNSUPPORTED.get(method, INSTEAD)
    raise LoadError(f"{quant.where}: {method} is not supported (only {served}): {instead}")


def _read_fp8(quant: HfConfig) -> QuantConfig:
    """`fp8`: one scale per tensor (or row), or DeepSeek's blocks (`weight_block_size`)."""
    fmt = quant.text("fmt", default="e4m3")
    if fmt not in ("e4m3", "float8_e4m3fn"):
        raise LoadError(f"{quant.where}: fmt {fmt} is not supported; e4m3 is")
    kept = quant.strings("ignored_layers", "modules_to_not_convert", "ignore")
    scheme = quant.text("activation_scheme", default="dynamic")
    if scheme not in ("dynamic", "static"):
        raise LoadError(f"{quant.where}: activation_scheme {scheme} is not dynamic or static")
    if not quant.has("weight_block_size"):
        activations: Activations = "tensor" if scheme == "static" else "token"
        return QuantConfig(in_checkpoint=True, activations=activations, kept=kept)
    if scheme == "static":
        raise LoadError(f"{quant.where}: static activations are not supported with weight blocks")
    rows = _block_rows(quant, "weight_block_size")
    return QuantConfig(
        in_checkpoint=True, weights="block", block_rows=rows, activations="group", kept=kept
    )


def _read_fbgemm(quant: HfConfig) -> QuantConfig:
    """`fbgemm_fp8`: row scales, activations per token and clipped at a bound."""
    return QuantConfig(
        in_checkpoint=True,
        activation_limit=quant.number("activation_scale_ub", default=1200.0),
        kept=quant.strings("modules_to_not_convert"),
    )


def _block_rows(holder: HfConfig, key: str) -> int:
    """Rows of a weight block [rows, 128]."""
    block = holder.numbers(key)
    if len(block) != 2 or block[0] < 1 or block[1] != GROUP:
        raise LoadError(f"{holder.where}: {key} {list(block)} is not supported; [n, {GROUP}] is")
    return int(block[0])


def _read_compressed(quant: HfConfig) -> QuantConfig:
    """`compressed-tensors`: of what it can say, 8-bit floats; every group must say the same."""
    if sparse := quant.nested("sparsity_config"):
        kind = sparse.text("format", default="dense")
        if kind != "dense":
            raise LoadError(f"{quant.where}: sparse weights ({kind}) are not supported")
    groups = quant.nested("config_groups")
    if groups is None or not groups.data:
        raise LoadError(f"{quant.where}: config_groups is missing")
    kept = quant.strings("ignore")
    found = [_read_group(groups, name, kept) for name in groups.data]
    first = found[0]
    targets = tuple(t for config in found for t in config.targets)
    for name, config in zip(groups.data, found, strict=True):
        same = (first.weights, first.block_rows, first.activations)
        if (config.weights, config.block_rows, config.activations) != same:
            raise LoadError(f"{groups.where}: {name} differs from the first group: not supported")
    return QuantConfig(
        in_checkpoint=True,
        weights=first.weights,
        block_rows=first.block_rows,
        activations=first.activations,
        targets=targets,
        kept=kept,
    )


def _read_group(groups: HfConfig, name: str, kept: tuple[str, ...]) -> QuantConfig:
    group = groups.nested(name)
    weights = group.nested("weights") if group else None
    if group is None or weights is None:
        raise LoadError(f"{groups.where}: {name} has no weights")
    strategy = weights.text("strategy", default="tensor")
    if not _is_float8(weights) or strategy not in ("tensor", "channel", "block"):
        kind = f"{weights.integer('num_bits')}-bit {weights.text('type')} by {strategy}"
        raise LoadError(
            f"{weights.where}: {kind} is not supported; 8-bit float by tensor, channel or block is"
        )
    in_blocks = strategy == "block"
    return QuantConfig(
        in_checkpoint=True,
        weights="block" if in_blocks else "row",
        block_rows=_block_rows(weights, "block_structure") if in_blocks else GROUP,
        activations=_read_activations(group, in_blocks=in_blocks),
        targets=group.strings("targets") or ("Linear",),
        kept=kept,
    )


def _is_float8(args: HfConfig) -> bool:
    symmetric = args.flag("symmetric", default=True)
    return args.integer("num_bits") == 8 and args.text("type") == "float" and symmetric


def _read_activations(group: HfConfig, *, in_blocks: bool) -> Activations:
    """A dynamic scale per tensor is served by one per token, which is finer."""
    inputs = group.nested("input_activations")
    if inputs is None:
        return "wide"
    strategy = inputs.text("strategy", default="tensor")
    dynamic = inputs.flag("dynamic", default=False)
    kinds: dict[tuple[str, bool], Activations] = {
        ("tensor", False): "tensor",
        ("tensor", True): "token",
        ("token", True): "token",
        ("group", True): "group",
    }
    kind = kinds.get((strategy, dynamic))
    if kind == "group" and inputs.integer("group_size", default=GROUP) != GROUP:
        kind = None
    if not _is_float8(inputs) or kind is None or in_blocks != (kind == "group"):
        how = "dynamic" if dynamic else "static"
        raise LoadError(f"{inputs.where}: {how} activations by {strategy} are not supported here")
    return kind
