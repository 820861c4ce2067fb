"""How many KV pages fit: measured, not guessed, so that serving cannot run out of memory."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import psutil
import torch
import torch.distributed as dist

from srt.batch import KvPool
from srt.config import Settings
from srt.engine_sizes import CUDA_SLACK_BYTES
from srt.errors import ConfigError
from srt.kv_spec import KvSpec
from srt.parallel import TensorParallel

log = logging.getLogger(__name__)

GIB = 1 << 30
CPU_POOL_SHARE = 0.5  # of the memory that is free once weights are loaded
CPU_POOL_CAP_BYTES = 4 * GIB  # more helps only who asks for it by --mem-fraction-static


@dataclass(frozen=True, slots=True)
class KvFormat:
    """How KV is stored. name: "" for the model's dtype, else "fp8_e5m2" or "fp8_e4m3"."""

    dtype: torch.dtype
    name: str

    @classmethod
    def of(cls, kv_cache_dtype: str, model_dtype: torch.dtype) -> KvFormat:
        """The format that `--kv-cache-dtype` asks for."""
        if kv_cache_dtype == "auto":
            return cls(model_dtype, "")
        return cls(torch.uint8, kv_cache_dtype)


@dataclass(frozen=True, slots=True)
class TrialSteps:
    """What the trial steps showed: bytes that steps need beside weights and pool, and their pace.

    activation_bytes: held by torch's allocator since the trial steps, and no longer free.
    graph_bytes: what graph capture will keep.  prompt_tokens_per_s: of one long prompt; 0: unknown.
    """

    activation_bytes: int
    graph_bytes: int
    prompt_tokens_per_s: float


def page_bytes(spec: KvSpec, page_size: int, fmt: KvFormat) -> int:
    """Bytes of one page over all layers of this rank, its slots' token ids included."""
    return page_size * (spec.values_per_token * fmt.dtype.itemsize + 4)


def allocate_pool(
    spec: KvSpec,
    num_pages: int,
    page_size: int,
    fmt: KvFormat,
    device: torch.device,
    scales: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> KvPool:
    """A zeroed pool: unused slots are read with weight zero, so they must hold finite numbers.

    Latent attention (`v_head_dim` 0) has no V. scales: of K and of V, one a layer; None: 1.
    """

    def tensors(dim: int) -> tuple[torch.Tensor, ...]:
        shape = (num_pages, spec.num_kv_heads, page_size, dim)
        return tuple(_zeros(shape, fmt.dtype, device) for _ in range(spec.num_layers))

    ones = (1.0,) * spec.num_layers
    k_scales, v_scales = scales or (ones, ones)
    return KvPool(
        k=tensors(spec.head_dim),
        v=tensors(spec.v_head_dim) if spec.v_head_dim else (),
        page_size=page_size,
        kv_format=fmt.name,
        k_scales=k_scales,
        v_scales=v_scales,
    )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy asks the kernel for zero pages, which cost nothing until they are written.
    blank = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(blank).view(dtype).view(shape)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on the device (CPU: of the machine)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def pool_budget_bytes(
    settings: Settings, device: torch.device, steps: TrialSteps, num_local_ranks: int
) -> int:
    """Bytes for the KV pool of this rank, weights being loaded and `steps` measured.

    CUDA: all that is free, less what steps and graphs take; `--mem-fraction-static` may lower it
    (weights and pool together then take that share of the device). CPU: half of the free memory,
    at most 4 GiB, shared by the node's ranks, or the asked share of the machine's memory.
    """
    free = free_bytes(device)
    if device.type == "cpu":
        if settings.mem_fraction_static is None:
            return min(int(free * CPU_POOL_SHARE), CPU_POOL_CAP_BYTES) // num_local_ranks
        total = int(psutil.virtual_memory().total)
        allowed = int(total * settings.mem_fraction_static) - (total - free)
        return allowed // num_local_ranks
    budget = free - steps.graph_bytes - CUDA_SLACK_BYTES
    if settings.mem_fraction_static is None:
        return budget
    total = int(torch.cuda.get_device_properties(device).total_memory)
    used = total - free - steps.activation_bytes
    return min(budget, int(total * settings.mem_fraction_static) - used)


def num_pool_pages(
    settings: Settings, budget_bytes: int, bytes_per_page: int, tp: TensorParallel
) -> int:
    """Pages of the pool, scratch page included; the same on every rank. Raises ConfigError."""
    num_pages = max(0, budget_bytes) // bytes_per_page
    if tp.size > 1:
        least = torch.tensor([num_pages])
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=tp.host_group)
        num_pages = int(least)
    if settings.max_total_tokens is not None:
        wanted = math.ceil(settings.max_total_tokens / settings.page_size) + 1
        if wanted > num_pages:
            log.warning(
                "--max-total-tokens %d does not fit; the pool holds %d",
                settings.max_total_tokens,
                (num_pages - 1) * settings.page_size,
            )
        num_pages = min(num_pages, wanted)
    if num_pages < 2:
        raise ConfigError(
            f"no memory is left for the KV pool: a page needs {bytes_per_page} bytes, "
            f"{budget_bytes / GIB:.2f} GiB are free; raise --mem-fraction-static, lower "
            "--chunked-prefill-size or --max-running-requests, or use more ranks"
        )
    return num_pages


def check_even_memory(device: torch.device, tp: TensorParallel) -> None:
    """Ranks whose free memory differs by over a tenth share a GPU with somebody: ConfigError."""
    if tp.size == 1 or device.type != "cuda":
        return
    low, high = torch.tensor([free_bytes(device)]), torch.tensor([free_bytes(device)])
    dist.all_reduce(low, op=dist.ReduceOp.MIN, group=tp.host_group)
    dist.all_reduce(high, op=dist.ReduceOp.MAX, group=tp.host_group)
    if int(low) < 0.9 * int(high):
        raise ConfigError(
            f"the ranks' GPUs have between {int(low) / GIB:.1f} and {int(high) / GIB:.1f} GiB "
            "free; another process uses one of them"
        )
