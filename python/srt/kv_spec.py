"""What the KV pool holds for a token, from a model's config alone; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from srt.errors import LoadError
from srt.model_config import ModelConfig

GPU_HEAD_DIMS = (64, 80, 96, 128, 256)  # that attention kernels take, for prompts and decodes


@dataclass(frozen=True, slots=True)
class KvSpec:
    """What the KV pool must hold on one rank: per layer and token, K and V of these sizes.

    head_dim: as the pool's kernels take it, which may be more than the model's.
    v_head_dim: 0 for latent attention, whose values are the head of its keys.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int

    @property
    def values_per_token(self) -> int:
        """Numbers of one token over all layers."""
        return self.num_layers * self.num_kv_heads * (self.head_dim + self.v_head_dim)


def own_kv_heads(num_kv_heads: int, rank: int, tp_size: int) -> range:
    """The kv heads of a rank: a share, of one more on some ranks where it is not even; or one that
    other ranks have too, where ranks outnumber heads. No rank has more than the last."""
    first = rank * num_kv_heads // tp_size
    return range(first, max(first + 1, (rank + 1) * num_kv_heads // tp_size))


def kv_spec(
    config: ModelConfig, tp_size: int, rank: int, head_dims: tuple[int, ...] = ()
) -> KvSpec:
    """The pool of one rank.

    Latent attention keeps one row for all heads, which every rank holds.

    head_dims: the widths of heads that attention takes, ascending; (): any. A head is padded to the
    next one.

    Raises:
        LoadError: the model's heads are wider than all of them.
    """
    if config.mla is not None:
        return KvSpec(config.num_layers, 1, config.mla.kv_rank + config.mla.rope_dim, 0)
    kv_heads = len(own_kv_heads(config.num_kv_heads, rank, tp_size))
    head_dim = config.head_dim
    if head_dims:
        if head_dim > head_dims[-1]:
            raise LoadError(
                f"attention on a GPU takes heads of up to {head_dims[-1]} values; the model's "
                f"head_dim is {head_dim}; --device cpu runs it"
            )
        head_dim = next(d for d in head_dims if d >= head_dim)
    return KvSpec(config.num_layers, kv_heads, head_dim, head_dim)
