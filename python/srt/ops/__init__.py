"""The one door to the kernels: plain functions that pick by the device."""

from srt.ops.activation import gelu_and_mul, silu_and_mul, softcap
from srt.ops.attention import paged_attention
from srt.ops.kv import rotary, rotary_store_kv, store_kv
from srt.ops.latent import latent_attention, store_latent
from srt.ops.linear import embedding, head_linear, linear, linear_silu_mul
from srt.ops.moe import experts_mlp, route
from srt.ops.norm import HeadNorms, add_rms_norm, layer_norm, rms_norm
from srt.ops.sampling import sample, token_logprobs, top_logprobs
from srt.ops.step import prepare_step

__all__ = [
    "HeadNorms",
    "add_rms_norm",
    "embedding",
    "experts_mlp",
    "gelu_and_mul",
    "head_linear",
    "latent_attention",
    "layer_norm",
    "linear",
    "linear_silu_mul",
    "paged_attention",
    "prepare_step",
    "rms_norm",
    "rotary",
    "rotary_store_kv",
    "route",
    "sample",
    "silu_and_mul",
    "softcap",
    "store_kv",
    "store_latent",
    "token_logprobs",
    "top_logprobs",
]
