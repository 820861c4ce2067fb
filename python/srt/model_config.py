"""What a checkpoint says about its model, as frozen records; no torch, so servers may read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from srt.embedding_config import LAST_TOKEN, EmbeddingConfig
from srt.errors import ConfigError, LoadError
from srt.gguf_file import GgufFile
from srt.hf_config import HfConfig, JsonObject, merge, read_json
from srt.quant_config import INSTEAD, UNSUPPORTED, QuantConfig, read_quant
from srt.rope_config import RopeConfig, read_rope

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """A mixture of experts in place of the MLP.

    intermediate_size: of one expert.  shared_size: of the always-on expert, 0 for none.
    shared_gate: the shared expert's output is scaled by a sigmoid gate.
    norm_order: the chosen experts' weights are divided by their L-p norm; 0: not, 1: by their sum.
    layers: which layers are sparse, one flag a layer.
    routed_scale: multiplies the routed experts' weights.
    router_softcap: cap·tanh(x / cap) on the router's logits; 0: none.
    router_fp32: the router's product is made in float32.
    num_groups, top_groups: experts come from the groups with the best single experts.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    layers: tuple[bool, ...]
    norm_order: float = 0.0
    shared_size: int = 0
    shared_gate: bool = False
    routed_scale: float = 1.0
    router_softcap: float = 0.0
    router_fp32: bool = False
    num_groups: int = 1
    top_groups: int = 1


@dataclass(frozen=True, slots=True)
class MlaConfig:
    """Latent attention (DeepSeek-V2). A head's q and k are `nope_dim + rope_dim` wide.

    q_rank, kv_rank: sizes of the latents; q_rank 0: q is projected at once.
    """

    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only model. What families differ in is a field; readers in `families.py` fill it.

    num_kv_heads and head_dim are of the whole model, before tensor parallelism.
    activation: "silu", "gelu" (erf) or "gelu_tanh".  norm: "rms" or "layer" (LayerNorm).
    norm_offset: added to RMSNorm weights (Gemma: 1).  norm_bias: LayerNorm has a bias.
    windows: per layer, how many keys a query sees, itself included; 0: all.
    parallel_residual: x + attn(norm(x)) + mlp(norm(x)), one norm a layer.
    sandwich_norm: attention's and MLP's outputs are normed before they are added.
    qk_norm: "", "rms" (one weight for all heads) or "layer" (LayerNorm, a weight row per head).
    qkv_clip: q, k and v are clamped to ±it before rotation; 0: not.
    attn_scale: multiplies q·k.  attn_softcap, logit_softcap: cap·tanh(x / cap); 0: none.
    embed_scale, logit_scale: multiply the embeddings and the logits.
    has_lm_head: False for models that only embed or classify.
    num_labels: scores of a sequence classifier; 0: it is none.
    causal: False: tokens see what follows them.
    embedding: how hidden states become a vector.  cuts: `matryoshka_dimensions`.
    dtype: of the checkpoint's weights.  context_len: as configured, before `--context-length`.
    eos_token_ids: all of config.json and generation_config.json.
    default_sampling: generation_config.json's sampling fields, as information.
    quant: None where weights keep the model's dtype.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    windows: tuple[int, ...]
    attn_scale: float
    context_len: int
    dtype: str
    tie_word_embeddings: bool
    activation: str = "silu"
    norm: str = "rms"
    norm_offset: float = 0.0
    norm_bias: bool = False
    qkv_bias: bool = False
    qkv_clip: float = 0.0
    o_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    has_lm_head: bool = True
    num_labels: int = 0
    causal: bool = True
    embedding: EmbeddingConfig = LAST_TOKEN
    cuts: tuple[int, ...] | None = None
    parallel_residual: bool = False
    sandwich_norm: bool = False
    qk_norm: str = ""
    attn_softcap: float = 0.0
    logit_softcap: float = 0.0
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    moe: MoeConfig | None = None
    mla: MlaConfig | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    default_sampling: Mapping[str, float] | None = None
    quant: QuantConfig | None = None


def read_context_len(hf: HfConfig, rope: RopeConfig) -> int:
    """The first length key in the config, times the factor of a rope scaling that extends it.

    `linear` multiplies; `yarn` reaches original * factor whichever way the config counts; `llama3`
    and `longrope` configs already hold the extended length. `dynamic` is left alone: beyond the
    trained length it changes every position's angles, so who wants it says `--context-length`.
    """
    keys = ("max_sequence_length", "seq_length", "max_position_embeddings", "max_seq_len")
    found = hf.number_or(None, *keys, "model_max_length")
    length = 2048 if found is None else int(found)
    if rope.kind == "linear":
        return int(length * rope.factor)
    if rope.kind == "yarn":
        return max(length, int(rope.original_len * rope.factor))
    return length


def read_dtype(hf: HfConfig) -> str:
    """The checkpoint's dtype name; float16 where an old config names none."""
    name = hf.text("torch_dtype", "dtype", default="float16").removeprefix("torch.")
    if name not in DTYPES:
        raise LoadError(f"{hf.where}: dtype {name!r} is not one of {', '.join(DTYPES)}")
    return name


def resolve_dtype(requested: str, checkpoint: str, device_type: str) -> str:
    """`--dtype` as a torch dtype name.

    auto on a GPU: bfloat16 checkpoints run in bfloat16, others in float16. auto on a CPU: bfloat16
    stays, others run in float32, since CPUs have no fast float16 arithmetic and bfloat16 would
    drop three bits of a float16 weight.

    Raises:
        ConfigError: no such dtype, or none that the device runs.
    """
    alias = {"half": "float16", "float": "float32"}
    name = alias.get(requested, requested)
    if name == "float32" and device_type == "cuda":
        raise ConfigError(
            f"--dtype {requested}: GPUs run bfloat16 and float16; --device cpu runs it"
        )
    if name in DTYPES:
        return name
    if name != "auto":
        choices = ("auto", *alias, *DTYPES)
        raise ConfigError(f"--dtype {requested} is not one of {', '.join(choices)}")
    if checkpoint == "bfloat16":
        return checkpoint
    return "float32" if device_type == "cpu" else "float16"


def read_checkpoint_json(source: Path, overrides: JsonObject | None) -> tuple[HfConfig, HfConfig]:
    """config.json (with `--json-model-override-args` laid over it) and generation_config.json.

    A GGUF file's metadata stands in for both.
    """
    if source.is_file():
        config = merge(GgufFile(source).config(), overrides or {})
        return HfConfig(config, str(source)), HfConfig({}, str(source))
    config_path = source / "config.json"
    generation_path = source / "generation_config.json"
    config = merge(read_json(config_path), overrides or {})
    generation = read_json(generation_path) if generation_path.exists() else {}
    return HfConfig(config, str(config_path)), HfConfig(generation, str(generation_path))


def add_generation(config: ModelConfig, hf: HfConfig, generation: HfConfig) -> ModelConfig:
    """`config` with the token ids and sampling defaults of both files."""
    eos = {i: None for source in (hf, generation) for i in source.token_ids("eos_token_id")}
    for token in eos:
        if not 0 <= token < config.vocab_size:
            raise LoadError(f"{hf.where}: eos_token_id {token} is outside the vocabulary")
    sampling = {
        key: generation.number(key)
        for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        if generation.has(key)
    }
    bos = (*hf.token_ids("bos_token_id"), *generation.token_ids("bos_token_id"))
    return replace(
        config,
        eos_token_ids=tuple(eos),
        bos_token_id=bos[0] if bos else None,
        default_sampling=sampling,
        quant=read_quant(hf),
    )


def with_context_len(config: ModelConfig, context_len: int | None) -> ModelConfig:
    """`--context-length`: any length the rope reaches; no model is stretched silently."""
    if context_len is None or context_len == config.context_len:
        return config
    if context_len < 1:
        raise ConfigError(f"--context-length {context_len} must be at least 1")
    stretchable = config.rope.kind == "dynamic"
    if context_len > config.context_len and not stretchable:
        raise ConfigError(
            f"--context-length {context_len} is longer than the model's {config.context_len}; "
            "a longer context needs a rope scaling, for example through --json-model-override-args"
        )
    return replace(config, context_len=context_len)


def with_quantization(config: ModelConfig, requested: str | None) -> ModelConfig:
    """`--quantization`: fp8 quantizes while loading; what the checkpoint says cannot be changed."""
    if requested is None:
        return config
    if requested != "fp8":
        instead = UNSUPPORTED.get(requested, INSTEAD)
        raise ConfigError(f"--quantization {requested} is not supported: {instead}")
    if config.quant is not None:
        return config
    return replace(config, quant=QuantConfig(in_checkpoint=False))


def layer_windows(hf: HfConfig, num_layers: int, window: int) -> tuple[int, ...]:
    """`window` at the layers that `layer_types` calls sliding, at all if there is no such list."""
    types = hf.strings("layer_types")
    if not types:
        return (window,) * num_layers
    if len(types) != num_layers or (odd := set(types) - {"sliding_attention", "full_attention"}):
        detail = f"holds {odd}" if len(types) == num_layers else f"has {len(types)} entries"
        raise LoadError(f"{hf.where}: layer_types {detail}; {num_layers} layers need known types")
    return tuple(window if t == "sliding_attention" else 0 for t in types)


def read_activation(hf: HfConfig, *keys: str, default: str = "silu") -> str:
    """The MLP's activation in our words. Raises LoadError for one no kernel has."""
    name = hf.text(*(keys or ("hidden_act",)), default=default)
    names = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
    names |= {"gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_tanh": "gelu_tanh"}
    if name not in names:
        raise LoadError(f"{hf.where}: activation {name!r} is not one of {', '.join(names)}")
    return names[name]


def read_decoder(hf: HfConfig, **fields: Any) -> ModelConfig:
    """The fields that most families spell alike; `fields` replace what one spells its own way."""
    num_layers = hf.integer("num_hidden_layers", "num_layers", "n_layers")
    num_heads = hf.integer("num_attention_heads", "n_heads")
    hidden = hf.integer("hidden_size", "d_model")
    if not hf.has("head_dim") and "head_dim" not in fields and hidden % num_heads:
        raise LoadError(f"{hf.where}: hidden_size {hidden} is not a multiple of {num_heads} heads")
    head_dim = fields.pop("head_dim", None) or hf.integer("head_dim", default=hidden // num_heads)
    rope = fields.pop("rope", None) or read_rope(hf, head_dim)
    values: dict[str, Any] = {
        "architecture": hf.strings("architectures")[0],
        "vocab_size": hf.integer("padded_vocab_size", "vocab_size"),
        "hidden_size": hidden,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": hf.integer("num_key_value_heads", default=num_heads),
        "head_dim": head_dim,
        "norm_eps": 0.0,
        "intermediate_size": 0,
        "rope": rope,
        "windows": (0,) * num_layers,
        "attn_scale": head_dim**-0.5,
        "context_len": read_context_len(hf, rope),
        "dtype": read_dtype(hf),
        "tie_word_embeddings": hf.flag("tie_word_embeddings", default=False),
    }
    if "norm_eps" not in fields:
        values["norm_eps"] = hf.number("rms_norm_eps", default=1e-6)
    if "intermediate_size" not in fields:
        values["intermediate_size"] = hf.integer("intermediate_size")
    if "activation" not in fields:
        values["activation"] = read_activation(hf)
    config = ModelConfig(**(values | fields))
    check_sizes(config, hf.where)
    return config


def check_sizes(config: ModelConfig, where: str) -> None:
    """Raises LoadError for sizes that no model can have."""
    for name in (
        "vocab_size",
        "hidden_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
    ):
        if getattr(config, name) < 1:
            raise LoadError(f"{where}: {name} is {getattr(config, name)}; it must be positive")
    if config.num_heads % config.num_kv_heads:
        raise LoadError(
            f"{where}: {config.num_heads} heads, not a multiple of {config.num_kv_heads} kv heads"
        )
    if config.rope.rotary_dim % 2:
        raise LoadError(f"{where}: rotary dim {config.rope.rotary_dim} is odd")
