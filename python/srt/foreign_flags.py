"""Flags of older and neighbouring servers: refused with a reason, or changing nothing."""

from __future__ import annotations

from collections.abc import Mapping

_NO_LORA = "LoRA adapters are not available in this version"
_NO_SPARSITY = "sparse attention is not available in this version"
_OWN_KERNELS = "SRT runs its own kernels and has no other backend"

# Flags of the same tradition that a command line may carry and that we cannot honour.
REFUSED_FLAGS: Mapping[str, str] = {
    "--additional-ports": "processes talk over local sockets and need no ports",
    "--attention-backend": _OWN_KERNELS,
    "--delete-ckpt-after-loading": "checkpoints are never deleted",
    "--disable-cuda-graph-padding": "graphs are padded to buckets; see --disable-cuda-graph",
    "--disable-penalizer": "penalties cost nothing where no request asks for them",
    "--double-sparsity": _NO_SPARSITY,
    "--ds-channel-config-path": _NO_SPARSITY,
    "--ds-heavy-channel-num": _NO_SPARSITY,
    "--ds-heavy-channel-type": _NO_SPARSITY,
    "--ds-heavy-token-num": _NO_SPARSITY,
    "--ds-sparse-decode-threshold": _NO_SPARSITY,
    "--enable-double-sparsity": _NO_SPARSITY,
    "--enable-p2p-check": "peer access is always asked from the driver",
    "--lora-paths": _NO_LORA,
    "--max-loras-per-batch": _NO_LORA,
    "--num-continuous-decode-steps": "every step may admit new requests",
    "--sampling-backend": _OWN_KERNELS,
    "--show-time-cost": "the start-up table and --log-level debug show where time goes",
    "--torchao-config": "use --quantization",
}

# Flags whose wish always holds here: accepted, and said so at the start.
ALWAYS_SO: Mapping[str, str] = {
    "--disable-disk-cache": "compiled grammars are kept in memory only",
    "--disable-flashinfer": "FlashInfer is never used",
    "--disable-flashinfer-sampling": "FlashInfer is never used",
    "--disable-nan-detection": "logits are not searched for NaN",
    "--efficient-weight-load": "weights always stream straight into their parameters",
    "--enable-cache-report": "usage always tells how much of a prompt was cached",
    "--enable-mixed-chunk": "decode rows always ride in prefill steps; see --disable-mixed-chunk",
    "--enable-mla": "latent attention is always used where the model has it",
    "--enable-overlap-schedule": "steps always overlap; see --disable-overlap-schedule",
    "--triton-attention-reduce-in-fp32": "attention always reduces in float32",
}
