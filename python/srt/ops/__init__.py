"""The one door to the kernels: plain functions that pick by the device.

Those of a decoder layer have a torch.library registration, which torch.compile sees instead.
"""

from srt.ops import activation, attention, compiled, kv, norm
from srt.ops import linear as _linear
from srt.ops.kv import rotary, store_kv
from srt.ops.latent import latent_attention, store_latent
from srt.ops.library import traced
from srt.ops.linear import head_linear
from srt.ops.moe import experts_mlp, route
from srt.ops.norm import HeadNorms, norm_heads
from srt.ops.sampling import sample, token_logprobs, top_logprobs
from srt.ops.step import prepare_step

add_rms_norm = traced(norm.add_rms_norm, compiled.add_rms_norm)
embedding = traced(_linear.embedding, compiled.embedding)
gelu_and_mul = traced(activation.gelu_and_mul, compiled.gelu_and_mul)
layer_norm = traced(norm.layer_norm, compiled.layer_norm)
linear = traced(_linear.linear, compiled.linear)
linear_silu_mul = traced(_linear.linear_silu_mul, compiled.linear_silu_mul)
paged_attention = traced(attention.paged_attention, compiled.paged_attention)
rms_norm = traced(norm.rms_norm, compiled.rms_norm)
rotary_store_kv = traced(kv.rotary_store_kv, compiled.rotary_store_kv)
silu_and_mul = traced(activation.silu_and_mul, compiled.silu_and_mul)
softcap = traced(activation.softcap, compiled.softcap)

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
    "norm_heads",
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
