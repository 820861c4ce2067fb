"""The decode attention's part of a step: its plans in the message, its workspace on the device."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from srt.batch import DecodeKind
from srt.core import native
from srt.engine.step import SharedPrefixes
from srt.layers.attention import Attention, LatentAttention

log = logging.getLogger(__name__)


def decode_kinds(model: nn.Module, head_dim: int) -> set[DecodeKind]:
    """The kinds of a model's attention layers that the decode kernel takes.

    Decodes of any other layer run as extends of one token.

    head_dim: of the pool.
    """
    kinds = set()
    for layer in model.modules():
        if isinstance(layer, Attention):
            spec = layer.spec
            kinds.add(DecodeKind(spec.num_heads, spec.num_kv_heads, head_dim, spec.window_left))
        elif isinstance(layer, LatentAttention):
            kinds.add(DecodeKind(layer.spec.num_heads, 1, layer.spec.head_dim, -1))
    taken = {
        kind
        for kind in kinds
        if kind.head_dim in (*native.DECODE_HEAD_DIMS, sum(native.LATENT_DIMS))
    }
    for kind in sorted(kinds - taken):
        log.warning("no decode attention kernel for head_dim %d: slower decodes", kind.head_dim)
    return taken


class DecodePlanner:
    """Appends the decode work lists to step messages; layers of one kind share a plan.

    Args:
        kinds: of the model's layers on this rank.
        kv_format: as in KvPool.

    Raises:
        ValueError: a kind for which there is no kernel.
    """

    def __init__(self, kinds: Iterable[DecodeKind], kv_format: str, device: torch.device) -> None:
        self._plans: list[tuple[native.DecodeGrid, int]] = []
        offsets: dict[DecodeKind, int] = {}
        workspace_bytes = 0
        for kind in sorted(set(kinds)):
            offsets[kind] = native.decode_plan_words(self._plans)
            grid = native.DecodeGrid(kind.num_heads, kind.num_kv_heads, kind.head_dim, kv_format)
            self._plans.append((grid, kind.window_left))
            workspace_bytes = max(workspace_bytes, grid.workspace_bytes)
        self.num_shared_steps = 0
        self.offsets: Mapping[DecodeKind, int] = offsets
        self.workspace = torch.zeros(workspace_bytes, dtype=torch.uint8, device=device)

    @property
    def round_tokens(self) -> int:
        """The shortest prefix that can be read once for several sequences; 0: none can."""
        return min((g.round_tokens for g, w in self._plans if w < 0 and g.share_rows), default=0)

    def max_words(self, max_running: int) -> int:
        """The most words that a message of so many decodes grows by."""
        return native.max_decode_plan_words(self._plans, max_running)

    def plan(
        self, message: Tensor, prefixes: SharedPrefixes | None = None, page_size: int = 1
    ) -> int:
        """Plans the decodes of a host message; returns how many bytes the device needs."""
        if prefixes is None:
            return native.plan_decode(message, self._plans)
        groups, pages = prefixes
        num_bytes = native.plan_decode(message, self._plans, groups, pages, page_size)
        self.num_shared_steps += native.plan_shares(message, self._plans)
        return num_bytes
