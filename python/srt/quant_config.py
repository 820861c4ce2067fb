"""How a checkpoint's weights are quantized, as far as we serve it."""

from __future__ import annotations

from dataclasses import dataclass

from srt.errors import LoadError
from srt.hf_config import HfConfig


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """Weights of the decoder layers' matrices in fp8 e4m3.

    in_checkpoint: they are stored so; otherwise they are quantized while they are loaded.
    """

    in_checkpoint: bool


def read_quant(hf: HfConfig) -> QuantConfig | None:
    """The checkpoint's quantization. Raises LoadError for any that we cannot serve."""
    quant = hf.nested("quantization_config") or hf.nested("compression_config")
    if quant is None:
        return None
    method = quant.text("quant_method")
    if method == "compressed-tensors":
        _check_compressed(quant)
    elif method != "fp8" or quant.has("weight_block_size"):
        kind = "fp8 in blocks" if method == "fp8" else method
        raise LoadError(
            f"{quant.where}: {kind} is not supported; supported: fp8 with a scale per row"
        )
    kept = quant.strings("ignored_layers", "modules_to_not_convert", "ignore")
    if odd := [name for name in kept if name != "lm_head"]:
        raise LoadError(
            f"{quant.where}: {odd[0]} is kept in higher precision, which is not supported"
        )
    return QuantConfig(in_checkpoint=True)


def _check_compressed(quant: HfConfig) -> None:
    """Of what compressed-tensors can say we take 8-bit float weights with row or tensor scales."""
    groups = quant.nested("config_groups")
    for name in groups.data if groups else ():
        weights = groups.nested(name) if groups else None
        weights = weights.nested("weights") if weights else None
        fits = (
            weights is not None
            and weights.integer("num_bits") == 8
            and weights.text("type") == "float"
            and weights.text("strategy") in ("tensor", "channel")
        )
        if not fits:
            raise LoadError(f"{quant.where}: {name} is not fp8 with a scale per row or tensor")
