"""One step's tensors as models see them: built by the worker, passed down to every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KvPool:
    """The KV pages of all layers; layouts as in docs/contracts.md section 1.

    k, v: per layer `[num_pages, num_kv_heads, page_size, head_dim]`, the model's dtype or uint8
        (fp8). Latent attention has one head of `kv_lora_rank + rope_dim` in k, and no v.
    kv_format: "" for the tensors' own dtype, else "fp8_e5m2" or "fp8_e4m3".
    k_scales, v_scales: per layer, `x = stored * scale`.
    """

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    page_size: int
    kv_format: str
    k_scales: tuple[float, ...]
    v_scales: tuple[float, ...]


class DecodeKind(NamedTuple):
    """What layers must agree in to share a plan of the decode attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window_left: int


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Shapes: T = num_tokens, B = num_seqs, padding included; decodes (one token each) come first.

    token_ids, positions, slots: int32 [T].  rows, seq_lens: int32 [B].  q_indptr: int32 [B + 1].
    page_table: int32 [max_running + 1, max_pages_per_seq], indexed by row.
    logit_idx: int32 [L], the tokens whose logits are wanted.
    max_q_len, max_seq_len: host-side upper bounds for this step.
    decode_work: the step message on the device, with its decode plans (CUDA), see
        cuda/attention/plan.h. None: no decode kernel, decodes are extends of one token.
    decode_plans: where in the message's work section the plan of a kind of layer stands.
    attn_workspace: scratch for split-KV partial results (CUDA only).
    device_num_decode: int32 [1]: the number of decodes, where the host does not know it (CUDA
        graphs of extend steps). num_decode is 0 then.
    extend_plans: the order of the extend attention's work (CUDA), by query heads, KV heads, bytes
        of a key and its value, and first sequence (-1: counted on the device); the first layer
        that needs one makes it.
    has_drafts: several decodes may be of one sequence, each one token behind the other; so none
        may attend before all of a layer's K and V are stored.
    """

    num_tokens: int
    num_seqs: int
    num_decode: int
    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    rows: Tensor
    q_indptr: Tensor
    seq_lens: Tensor
    page_table: Tensor
    logit_idx: Tensor
    max_q_len: int
    max_seq_len: int
    kv: KvPool
    decode_work: Tensor | None = None
    decode_plans: Mapping[DecodeKind, int] = field(default_factory=dict)
    attn_workspace: Tensor | None = None
    device_num_decode: Tensor | None = None
    extend_plans: dict[tuple[int, int, int, int], Tensor] = field(default_factory=dict)
    has_drafts: bool = False


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """The fixed tensors that `prepare_step` fills; allocated once: CUDA graphs can hold them.

    All int32. T = max tokens of a step, B = max sequences (max_running), L = max logit rows.
    Contents and padding: docs/contracts.md section 3.

    token_ids, positions, slots, token_seq: [T].
    rows, seq_lens, prompt_lens: [B], by sequence.  q_indptr: [B + 1].
    logit_idx, logit_targets: [L]; the targets are -1 for samples.
    sampling: [B, 16], by sample.  sample_rows: [B], by sample.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    token_seq: Tensor
    rows: Tensor
    seq_lens: Tensor
    prompt_lens: Tensor
    q_indptr: Tensor
    logit_idx: Tensor
    logit_targets: Tensor
    sampling: Tensor
    sample_rows: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields in their order, as the bindings take them."""
        return (
            self.token_ids,
            self.positions,
            self.slots,
            self.token_seq,
            self.rows,
            self.seq_lens,
            self.prompt_lens,
            self.q_indptr,
            self.logit_idx,
            self.logit_targets,
            self.sampling,
            self.sample_rows,
        )

    @classmethod
    def allocate(
        cls, max_tokens: int, max_seqs: int, max_logits: int, device: torch.device
    ) -> StepBuffers:
        """Zeroed buffers; `max_logits` is at least `max_seqs`."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        return cls(
            token_ids=zeros(max_tokens),
            positions=zeros(max_tokens),
            slots=zeros(max_tokens),
            token_seq=zeros(max_tokens),
            rows=zeros(max_seqs),
            seq_lens=zeros(max_seqs),
            prompt_lens=zeros(max_seqs),
            q_indptr=zeros(max_seqs + 1),
            logit_idx=zeros(max_logits),
            logit_targets=zeros(max_logits),
            sampling=zeros(max_seqs, 16),
            sample_rows=zeros(max_seqs),
        )
