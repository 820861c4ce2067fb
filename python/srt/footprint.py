"""How many weights a rank holds, and what a step needs beside them, from the config alone."""

from __future__ import annotations

from dataclasses import dataclass

from srt.model_config import MlaConfig, ModelConfig, MoeConfig

VOCAB_ALIGNMENT = 64  # of a rank's rows, where there are several ranks: for the GEMM's sake


@dataclass(frozen=True, slots=True)
class WeightCounts:
    """Numbers of one rank. matrices: what `--quantization fp8` stores in a byte each.

    matrix_rows: their rows, which have a scale each in fp8.  wide: what keeps the model's dtype.
    float32: what is float32 in any model.
    """

    matrices: int = 0
    matrix_rows: int = 0
    wide: int = 0
    float32: int = 0

    def __add__(self, other: WeightCounts) -> WeightCounts:
        return WeightCounts(
            self.matrices + other.matrices,
            self.matrix_rows + other.matrix_rows,
            self.wide + other.wide,
            self.float32 + other.float32,
        )

    def num_bytes(self, itemsize: int, *, fp8: bool) -> int:
        """Bytes in a dtype of `itemsize`."""
        kept = self.wide * itemsize + self.float32 * 4
        if fp8:
            return kept + self.matrices + 4 * self.matrix_rows
        return kept + self.matrices * itemsize


def matrix(out_size: int, in_size: int) -> WeightCounts:
    return WeightCounts(matrices=out_size * in_size, matrix_rows=out_size)


def weight_counts(config: ModelConfig, tp_size: int) -> WeightCounts:
    """The weights of one rank of `tp_size`, as the models build them."""
    norm = config.hidden_size * (2 if config.norm_bias else 1)
    norms = 1 if config.parallel_residual else 4 if config.sandwich_norm else 2
    vocab = vocab_rows(config.vocab_size, tp_size)
    num_tables = 1 if config.tie_word_embeddings or not config.has_lm_head else 2
    total = WeightCounts(wide=num_tables * vocab * config.hidden_size + norm)
    if config.has_lm_head and config.lm_head_bias:
        total += WeightCounts(wide=vocab)
    total += WeightCounts(wide=config.num_labels * config.hidden_size)
    for is_sparse in sparse_layers(config):
        total += WeightCounts(wide=norms * norm)
        total += attention_counts(config, tp_size)
        if is_sparse and config.moe is not None:
            total += expert_counts(config, config.moe, tp_size)
        else:
            total += mlp_counts(config, tp_size)
    return total


def sparse_layers(config: ModelConfig) -> tuple[bool, ...]:
    """Which layers have experts."""
    return (False,) * config.num_layers if config.moe is None else config.moe.layers


def vocab_rows(vocab_size: int, tp_size: int) -> int:
    """Rows of the vocabulary on each rank, padding included."""
    if tp_size == 1:
        return vocab_size
    return -(-vocab_size // tp_size // VOCAB_ALIGNMENT) * VOCAB_ALIGNMENT


def attention_counts(config: ModelConfig, tp_size: int) -> WeightCounts:
    """One layer's projections and head norms."""
    if config.mla is not None:
        return latent_counts(config, config.mla, tp_size)
    hidden, dim = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_heads // tp_size, max(1, config.num_kv_heads // tp_size)
    rows = (heads + 2 * kv_heads) * dim
    wide = (rows if config.qkv_bias else 0) + (hidden if config.o_bias else 0)
    if config.qk_norm:
        wide += 2 * dim if config.qk_norm == "rms" else (heads + kv_heads) * dim
    return matrix(rows, hidden) + matrix(hidden, heads * dim) + WeightCounts(wide=wide)


def latent_counts(config: ModelConfig, mla: MlaConfig, tp_size: int) -> WeightCounts:
    """One layer of latent attention; the projections to latents are whole on every rank."""
    hidden, heads = config.hidden_size, config.num_heads // tp_size
    latent = mla.kv_rank + mla.rope_dim
    wide = mla.kv_rank + heads * (mla.nope_dim + mla.v_dim) * mla.kv_rank
    wide += (latent if config.qkv_bias else 0) + (hidden if config.o_bias else 0)
    counts = matrix(heads * config.head_dim, mla.q_rank or hidden) + matrix(latent, hidden)
    if mla.q_rank:
        wide += mla.q_rank + (mla.q_rank if config.qkv_bias else 0)
        counts += matrix(mla.q_rank, hidden)
    return counts + matrix(hidden, heads * mla.v_dim) + WeightCounts(wide=wide)


def mlp_counts(config: ModelConfig, tp_size: int) -> WeightCounts:
    """One layer's gated MLP."""
    size = config.intermediate_size // tp_size
    bias = 2 * size + config.hidden_size if config.mlp_bias else 0
    return gated_counts(config.hidden_size, size) + WeightCounts(wide=bias)


def gated_counts(hidden: int, size: int) -> WeightCounts:
    return matrix(2 * size, hidden) + matrix(hidden, size)


def expert_counts(config: ModelConfig, moe: MoeConfig, tp_size: int) -> WeightCounts:
    """One layer's experts: every rank has its share of each."""
    hidden, size = config.hidden_size, moe.intermediate_size // tp_size
    one = gated_counts(hidden, size)
    total = WeightCounts(one.matrices * moe.num_experts, one.matrix_rows * moe.num_experts)
    if moe.shared_size:
        total += gated_counts(hidden, moe.shared_size // tp_size)
    router = moe.num_experts * hidden
    total += WeightCounts(float32=router) if moe.router_fp32 else WeightCounts(wide=router)
    return total + WeightCounts(wide=hidden if moe.shared_gate else 0)


def collectives(config: ModelConfig, tp_size: int) -> int:
    """Of a step: sums over ranks of the embedding and two a layer, and the gathered logits."""
    return 2 * config.num_layers + 2 if tp_size > 1 else 0


def widened_values(config: ModelConfig) -> int:
    """Numbers of one layer's experts on one GPU, which fp8 models widen for long prompts."""
    if config.moe is None:
        return 0
    return config.moe.num_experts * 3 * config.hidden_size * config.moe.intermediate_size


def indivisible(config: ModelConfig, tp_size: int) -> str:
    """What `tp_size` ranks cannot share, or an empty string. Groups of heads need not be even."""
    sizes: dict[str, int] = {}
    if config.mla is not None or config.num_kv_heads < tp_size:
        sizes["attention heads"] = config.num_heads
    if config.moe is None or not all(config.moe.layers):
        sizes["intermediate_size"] = config.intermediate_size
    if config.moe is not None:
        sizes["the experts' intermediate_size"] = config.moe.intermediate_size
        sizes["the shared expert's size"] = config.moe.shared_size
    for what, size in sizes.items():
        if size % tp_size:
            return f"{what} ({size})"
    is_repeated = config.mla is None and config.num_kv_heads < tp_size
    is_uneven = is_repeated and tp_size % config.num_kv_heads
    return f"kv heads ({config.num_kv_heads})" if is_uneven else ""


def activation_values(config: ModelConfig, tp_size: int) -> int:
    """Numbers that a token has at once, in the layer that has most."""
    hidden, dim = config.hidden_size, config.head_dim
    heads = -(-config.num_heads // tp_size)
    if config.mla is not None:
        row = config.mla.kv_rank + config.mla.rope_dim
        attention = row + heads * (dim + row + config.mla.kv_rank)
    else:
        kv_heads = max(1, config.num_kv_heads // tp_size)
        attention = (2 * heads + 2 * kv_heads) * dim
    mlp = 3 * config.intermediate_size // tp_size
    if config.moe is not None:
        size = config.moe.intermediate_size // tp_size
        chosen = config.moe.top_k * (2 * size + 4 * hidden)  # the sum over experts is in float32
        mlp = max(mlp, chosen + 3 * config.moe.shared_size // tp_size)
    return 3 * hidden + max(attention, mlp)
