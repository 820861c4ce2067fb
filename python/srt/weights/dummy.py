"""`--load-format dummy`: deterministic random weights made where they live."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SEED = 0x5EED
FP8_INPUT_SCALE = 2.0**-5  # reaches 14: normed activations
FP8_ROWS = 4096
FP8_SCALE = 2.0**-10  # keeps a row of fan_in 32 and more within e4m3's range and precision


def fill_dummy(model: nn.Module) -> None:
    """Fills every parameter in place, on its device, without host staging.

    Matrices are uniform with variance 1 / fan_in, so that activations stay in range through any
    depth; norms' weights (vectors) are 1 and biases 0.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for name, param in model.named_parameters():
        if param.device not in generators:
            generators[param.device] = torch.Generator(param.device).manual_seed(SEED)
        _fill(name, param.data, generators[param.device])


def _fill(name: str, data: Tensor, generator: torch.Generator) -> None:
    if name == "kv_scales.values":
        data.fill_(1.0)
    elif name.endswith("weight_scale"):
        data.fill_(FP8_SCALE)
    elif name.endswith("input_scale"):
        data.fill_(FP8_INPUT_SCALE)
    elif data.dtype == torch.float8_e4m3fn:
        bound = math.sqrt(3.0 / data.shape[-1]) / FP8_SCALE
        for part in torch.split(data, FP8_ROWS):  # bounds the wide copy
            wide = torch.empty(part.shape, dtype=torch.bfloat16, device=data.device)
            part.copy_(wide.uniform_(-bound, bound, generator=generator))
    elif not data.is_floating_point():
        data.zero_()
    elif data.dim() < 2:
        data.fill_(0.0 if name.endswith("bias") else 1.0)
    else:
        bound = math.sqrt(3.0 / data.shape[-1])
        data.uniform_(-bound, bound, generator=generator)
