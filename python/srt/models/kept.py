"""Which matrices of an fp8 model stay wide, by the names that its checkpoint gives them."""

from __future__ import annotations

from torch import nn

from srt.errors import LoadError
from srt.layers.linear import Linear
from srt.layers.moe import ExpertColumns, ExpertRows
from srt.quant_config import QuantConfig
from srt.weights.table import Rule, sources_of


def keep_wide(model: nn.Module, rules: tuple[Rule, ...], quant: QuantConfig) -> None:
    """Makes the matrices wide that the checkpoint leaves out of its quantization.

    Raises:
        LoadError: a part of a fused matrix is quantized and another is not.
    """
    if not quant.kept and quant.targets == ("Linear",):
        return
    for path, module in model.named_modules():
        if not isinstance(module, Linear | ExpertColumns | ExpertRows):
            continue
        if module.weight_scale is None:
            continue
        num_experts = module.weight.shape[0] if module.weight.dim() == 3 else 0
        names = sources_of(rules, f"{path}.weight", num_experts)
        if not _is_quantized(path, names, quant):
            module.keep_wide()


def _is_quantized(path: str, names: dict[str, bool], quant: QuantConfig) -> bool:
    """Whether a matrix is. `names`: see `sources_of`; one that means all of it decides alone."""
    answers = {name: quant.is_quantized(name.removesuffix(".weight")) for name in names}
    if any(not answers[name] for name, is_whole in names.items() if is_whole):
        return False
    parts = {answers[name] for name, is_whole in names.items() if not is_whole}
    if len(parts) > 1:
        left_out = sorted(n for n, is_whole in names.items() if not is_whole and not answers[n])
        raise LoadError(f"{left_out[0]} is kept wide, but other parts of {path} are quantized")
    return parts != {False}
