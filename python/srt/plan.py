"""`srt-server plan MODEL`: what serving a model takes on given GPUs, and the flags for it.

Everything comes from config.json and the headers of the weight files; no torch, no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from srt.engine_sizes import (
    CUDA_GRAPH_BYTES,
    CUDA_SLACK_BYTES,
    DEFAULT_MAX_RUNNING,
    EXTEND_BUCKET_TOKENS,
    NCCL_CALL_BYTES,
    PAGE_TABLE_CAP_BYTES,
    TOKENS_PER_ROW,
    graph_sizes,
)
from srt.errors import ConfigError, LoadError
from srt.families import load_model_config
from srt.footprint import (
    activation_values,
    collectives,
    indivisible,
    weight_counts,
    widened_values,
)
from srt.hub import HubOptions, resolve_model
from srt.kv_spec import GPU_HEAD_DIMS, kv_spec
from srt.model_config import ModelConfig, resolve_dtype
from srt.safetensors_header import read_folder

GIB = 1 << 30
MIB = 1 << 20
# What a driver reports as the card's memory, in MiB.
GPUS = {
    "T4": 15360,
    "A10": 23028,
    "A10G": 23028,
    "L4": 23034,
    "RTX3090": 24576,
    "RTX4090": 24564,
    "RTX5090": 32607,
    "V100-32GB": 32768,
    "A100-40GB": 40960,
    "L40S": 46068,
    "A6000": 49140,
    "A100": 81920,
    "H100": 81559,
    "H200": 143771,
    "B200": 183359,
}
CONTEXT_BYTES = 600 * MIB  # driver context, libraries' code and handles
NCCL_BYTES = 400 * MIB  # of a rank among several
MAX_TP = 16
ITEMSIZE = {"float16": 2, "bfloat16": 2}
COMMON_TOKENS = 2048  # a conversation's length for the second figure of concurrency
NO_FIT = 3  # exit code


@dataclass(frozen=True, slots=True)
class Choice:
    """How a model is to be served."""

    tp_size: int
    kv_cache_dtype: str
    fp8: bool
    context_len: int
    max_running: int | None = None
    prefill_tokens: int = 8192
    page_size: int = 16


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of one GPU. pool_bytes may be negative: then the model does not fit."""

    weight_bytes: int
    kv_bytes_per_token: int
    activation_bytes: int
    graph_bytes: int
    overhead_bytes: int
    pool_bytes: int
    pool_tokens: int
    max_running: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command prints."""

    model: str
    architecture: str
    dtype: str
    gpu: str
    gpu_bytes: int
    choice: Choice
    budget: Budget
    fits: bool
    reason: str
    alternatives: tuple[str, ...]
    command: str
    checkpoint: str

    @property
    def full_contexts(self) -> float:
        """Sequences of the whole context that the pool holds at once."""
        return self.budget.pool_tokens / self.choice.context_len


def gpu_memory(name: str) -> int:
    """`--gpu`: a card of the table, or a size such as 24GB (GiB), in bytes."""
    if sized := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:G|GB|GIB)", name.upper()):
        return int(float(sized[1]) * GIB)
    for known, mib in GPUS.items():
        if name.upper().replace(" ", "") == known.upper():
            return mib * MIB
    raise ConfigError(f"--gpu {name} is neither a size such as 24GB nor one of {', '.join(GPUS)}")


def make_budget(config: ModelConfig, dtype: str, choice: Choice, gpu_bytes: int) -> Budget:
    """Where one GPU's memory goes."""
    itemsize = ITEMSIZE[dtype]
    tp = choice.tp_size
    weights = weight_counts(config, tp).num_bytes(itemsize, fp8=choice.fp8)
    kv_itemsize = itemsize if choice.kv_cache_dtype == "auto" else 1
    per_token = kv_spec(config, tp, tp - 1, GPU_HEAD_DIMS).values_per_token * kv_itemsize
    row_bytes = 4 * -(-choice.context_len // choice.page_size)
    max_running = choice.max_running or min(
        DEFAULT_MAX_RUNNING["cuda"], max(1, PAGE_TABLE_CAP_BYTES // row_bytes)
    )
    overhead = CONTEXT_BYTES + CUDA_SLACK_BYTES + (NCCL_BYTES if tp > 1 else 0)
    while True:
        activations, graphs = step_bytes(config, itemsize, choice, max_running, row_bytes)
        pool = gpu_bytes - weights - activations - graphs - overhead
        tokens = max(0, pool) // (per_token + 4) // choice.page_size * choice.page_size
        fed = max(1, tokens // TOKENS_PER_ROW)
        if choice.max_running is not None or max_running <= fed or max_running == 1:
            break
        max_running = max(fed, max_running // 2)
    return Budget(weights, per_token, activations, graphs, overhead, pool, tokens, max_running)


def step_bytes(
    config: ModelConfig, itemsize: int, choice: Choice, max_running: int, row_bytes: int
) -> tuple[int, int]:
    """Of the largest step, page table included; and what CUDA graphs keep."""
    per_token = activation_values(config, choice.tp_size) * itemsize
    logits = max_running * config.vocab_size * itemsize
    gathered = 2 if choice.tp_size > 1 else 1
    tokens = min(choice.prefill_tokens, choice.context_len) + max_running
    activations = tokens * per_token + gathered * logits + max_running * row_bytes
    if choice.fp8:
        activations += widened_values(config) // choice.tp_size * itemsize
    graphs = max_running * per_token + gathered * logits
    num_graphs = len(graph_sizes(max_running)) + len(EXTEND_BUCKET_TOKENS)
    calls = collectives(config, choice.tp_size)
    return activations, graphs + num_graphs * (CUDA_GRAPH_BYTES + calls * NCCL_CALL_BYTES)


def problem(config: ModelConfig, budget: Budget, choice: Choice) -> str:
    """Why a choice cannot be served, or an empty string."""
    if uneven := indivisible(config, choice.tp_size):
        return f"{uneven} cannot be divided over {choice.tp_size} GPUs"
    if budget.pool_tokens < min(choice.context_len, COMMON_TOKENS):
        need = budget.weight_bytes + budget.activation_bytes + budget.graph_bytes
        return (
            f"weights and steps need {need / GIB:.1f} GiB a GPU, and "
            f"{max(0, budget.pool_bytes) / GIB:.2f} GiB are left for KV: "
            f"{budget.pool_tokens} tokens"
        )
    return ""


def alternatives(
    config: ModelConfig, dtype: str, choice: Choice, gpu_bytes: int
) -> Iterator[Choice]:
    """What would fit instead, the least change first."""
    can_fp8 = config.quant is None
    kinds = [choice, replace(choice, kv_cache_dtype="fp8_e4m3")]
    if can_fp8:
        kinds += [replace(kind, fp8=True) for kind in kinds]
    tp_size = choice.tp_size
    while tp_size <= MAX_TP:
        for kind in kinds:
            tried = replace(kind, tp_size=tp_size)
            if tried == choice:
                continue
            if not problem(config, make_budget(config, dtype, tried, gpu_bytes), tried):
                yield tried
                if tried.tp_size > choice.tp_size:
                    return
        tp_size *= 2


def flags(choice: Choice, config: ModelConfig) -> list[str]:
    """The flags of `srt-server` that say a choice."""
    out = []
    if choice.tp_size > 1:
        out += ["--tp-size", str(choice.tp_size)]
    if choice.kv_cache_dtype != "auto":
        out += ["--kv-cache-dtype", choice.kv_cache_dtype]
    if choice.fp8 and config.quant is None:
        out += ["--quantization", "fp8"]
    if choice.max_running is not None:
        out += ["--max-running-requests", str(choice.max_running)]
    return out


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan for parsed arguments. Raises LoadError, ConfigError."""
    source = resolve_model(args.model, HubOptions(), with_weights=False)
    config = load_model_config(
        source, context_len=args.context_length, quantization=args.quantization
    )
    dtype = resolve_dtype(args.dtype, config.dtype, "cuda")
    gpu_bytes = gpu_memory(args.gpu)
    choice = Choice(
        tp_size=args.tp_size,
        kv_cache_dtype=args.kv_cache_dtype,
        fp8=config.quant is not None,
        context_len=config.context_len,
        max_running=args.max_running_requests,
    )
    budget = make_budget(config, dtype, choice, gpu_bytes)
    reason = problem(config, budget, choice)
    others = alternatives(config, dtype, choice, gpu_bytes) if reason else iter(())
    given = [] if args.dtype == "auto" else ["--dtype", args.dtype]
    if args.context_length is not None:
        given += ["--context-length", str(args.context_length)]
    command = ["srt-server", "--model-path", args.model, *flags(choice, config), *given]
    return Plan(
        model=args.model,
        architecture=config.architecture,
        dtype=dtype,
        gpu=args.gpu,
        gpu_bytes=gpu_bytes,
        choice=choice,
        budget=budget,
        fits=not reason,
        reason=reason,
        alternatives=tuple(" ".join(flags(other, config)) for other in others),
        command=" ".join(command),
        checkpoint=describe_files(source, config),
    )


def describe_files(source: Path, config: ModelConfig) -> str:
    """The weight files, held against the config."""
    if source.is_file():
        return f"GGUF file of {source.stat().st_size / GIB:.2f} GiB, dequantized while loading"
    tensors = read_folder(source)
    if not tensors:
        return "no safetensors files here: sizes come from config.json alone"
    counts = weight_counts(config, 1)
    described = counts.matrices + counts.wide + counts.float32
    held = sum(t.numel for t in tensors if not t.name.endswith(("_scale", "inv_freq")))
    size = sum(t.num_bytes for t in tensors)
    text = f"{size / GIB:.2f} GiB of safetensors, {held / 1e9:.3f} B parameters"
    if config.tie_word_embeddings:  # some files repeat the embedding as the head
        spare = config.vocab_size * config.hidden_size
        held = held - spare if abs(held - spare - described) < abs(held - described) else held
    if abs(held - described) > 0.005 * described:
        return f"{text}; config.json describes {described / 1e9:.3f} B: they do not belong together"
    return text


def table(plan: Plan) -> Iterator[str]:
    """The plan as lines for people."""
    budget, choice = plan.budget, plan.choice
    ranks = f"{choice.tp_size} x {plan.gpu}" if choice.tp_size > 1 else plan.gpu
    yield f"{plan.model}: {plan.architecture}, {plan.dtype}{', fp8 weights' * choice.fp8}"
    yield f"  checkpoint               {plan.checkpoint}"
    yield f"  on                       {ranks}, {plan.gpu_bytes / GIB:.1f} GiB each"
    yield f"  weights                  {budget.weight_bytes / GIB:8.2f} GiB a GPU"
    yield f"  activations of a step    {budget.activation_bytes / GIB:8.2f} GiB"
    yield f"  CUDA graphs              {budget.graph_bytes / GIB:8.2f} GiB"
    yield f"  driver and libraries     {budget.overhead_bytes / GIB:8.2f} GiB"
    yield f"  KV pool                  {max(0, budget.pool_bytes) / GIB:8.2f} GiB"
    yield f"  KV of a token            {budget.kv_bytes_per_token:8d} bytes a GPU"
    yield f"  pool                     {budget.pool_tokens:8d} tokens"
    if not plan.fits:
        yield f"  does not fit: {plan.reason}"
        for other in plan.alternatives:
            yield f"  would fit with           {other}"
        if not plan.alternatives:
            yield f"  nothing up to {MAX_TP} such GPUs would fit"
        return
    running = budget.max_running
    common = min(running, budget.pool_tokens // min(COMMON_TOKENS, choice.context_len))
    yield f"  sequences at once        {running:8d} at most"
    yield f"    of {COMMON_TOKENS} tokens         {common:8d}"
    yield f"    of {choice.context_len} tokens".ljust(27) + f"{plan.full_contexts:8.1f}"
    yield f"  run  {plan.command}"
    if plan.full_contexts < 1:
        yield (
            f"  the longest sequence is {budget.pool_tokens} tokens: a longer context needs "
            "--kv-cache-dtype fp8_e4m3 or more GPUs"
        )


def main(argv: Sequence[str]) -> int:
    """Prints a plan. Returns 0 where it fits, 3 where it does not."""
    parser = argparse.ArgumentParser(
        prog="srt-server plan", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("model", help="a local folder, a GGUF file or a hub id")
    parser.add_argument("--gpu", default="H100", help=f"24GB, or one of {', '.join(GPUS)}")
    parser.add_argument("--tp-size", "--tp", type=positive, default=1, help="GPUs of one copy")
    parser.add_argument(
        "--kv-cache-dtype", default="auto", choices=("auto", "fp8_e5m2", "fp8_e4m3")
    )
    parser.add_argument("--quantization", choices=("fp8",), help="of the weights")
    parser.add_argument("--dtype", default="auto", help="as for srt-server")
    parser.add_argument("--context-length", type=positive)
    parser.add_argument("--max-running-requests", type=positive)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    try:
        plan = make_plan(args)
    except (ConfigError, LoadError) as error:
        sys.stderr.write(f"srt-server plan: error: {error}\n")
        return 2
    if args.json:
        sys.stdout.write(json.dumps(asdict(plan), indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(table(plan)) + "\n")
    return 0 if plan.fits else NO_FIT


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(f"{text} is not positive")
    return value
