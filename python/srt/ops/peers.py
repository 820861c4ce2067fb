"""Sums over the ranks of one host by our own kernels, alone or on their way into a norm; gathers.

Every rank makes the same calls in the same order, as with any collective.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srt.core import native
from srt.ops.cuda import is_hopper

VECTOR = 8  # values
# By number of ranks: the longest message that is sent here, and the longest that every rank sends
# to every other. Longer ones go to an owner each, who sends the sum back (docs/kernels.md).
MAX_BYTES = {2: 4 << 20, 4: 1 << 20, 8: 1 << 20}
MAX_ONE_SHOT_BYTES = {2: 4 << 20, 4: 256 << 10, 8: 64 << 10}


class PeerGroup:
    """The ranks' inboxes on their devices, connected.

    Args:
        peers: this rank's own inbox, with those of the others mapped.
        size: how many ranks there are: 2, 4 or 8.
    """

    def __init__(self, peers: native.Peers, size: int) -> None:
        self._peers = peers
        self._size = size
        self._max_bytes = MAX_BYTES[size]
        self._max_one_shot_bytes = MAX_ONE_SHOT_BYTES[size]

    @property
    def max_bytes(self) -> int:
        """Of a message."""
        return self._max_bytes

    def takes(self, x: Tensor) -> bool:
        """Whether x is summed here: by its shape, so that all ranks find the same."""
        return (
            x.is_cuda
            and x.dtype in (torch.bfloat16, torch.float16)
            and x.nbytes <= self._max_bytes
            and x.is_contiguous()
            and x.numel() % VECTOR == 0
            and x.storage_offset() % VECTOR == 0
        )

    def takes_rows(self, x: Tensor) -> bool:
        """Whether `norm` takes x [T, H]."""
        hidden = x.shape[-1]
        return self.takes(x) and hidden % VECTOR == 0 and hidden <= native.MAX_ALL_REDUCE_HIDDEN

    def takes_parts(self, x: Tensor) -> bool:
        """Whether `all_gather` takes x."""
        return x.dim() == 2 and x.shape[1] % VECTOR == 0 and self.takes(x)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sums x over the ranks, in place: in rank order in float32, rounded once."""
        self._peers.all_reduce(x, x, **self._how(x))
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """[T, n] of each rank → [T, size * n], in rank order."""
        out = x.new_empty(x.shape[0], self._size * x.shape[1])
        how = self._how(x)
        self._peers.all_gather(x, out, how["pdl"], how["stream"])
        return out

    def norm(  # noqa: PLR0913
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        out: Tensor,
        *,
        scales: Tensor | None = None,
        given: Tensor | None = None,
        limit: float = 0.0,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        weight_offset: float = 0.0,
        centered: bool = False,
    ) -> None:
        """`cuda.norm` of x [T, H] summed over the ranks; `cuda.norm_to_fp8` where out is e4m3."""
        if out.dtype == torch.float8_e4m3fn:
            out = out.view(torch.uint8)
        self._peers.all_reduce_norm(
            x,
            weight,
            bias,
            residual,
            out,
            scales,
            eps,
            weight_offset,
            centered,
            given=given,
            limit=limit,
            **self._how(x),
        )

    def disconnect(self) -> None:
        """Unmaps the others' inboxes; no rank's kernel may be under way."""
        self._peers.disconnect()

    def close(self) -> None:
        """Frees the own inbox, once every rank has disconnected."""
        self._peers.close()

    def _how(self, x: Tensor) -> dict[str, Any]:
        return {
            "two_shots": x.nbytes > self._max_one_shot_bytes,
            "pdl": is_hopper(x.device),
            "stream": torch.cuda.current_stream(x.device).cuda_stream,
        }
