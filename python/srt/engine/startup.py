"""From settings to a rank that can run: model, memory, scheduler, graphs, a report of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from srt.channel import EmbeddingInfo
from srt.config import Settings
from srt.core import native
from srt.engine.compile import CompiledDecode, check_compiles
from srt.engine.cpu_tape import DecodeTapes
from srt.engine.decode_plan import DecodePlanner, decode_kinds
from srt.engine.device_state import DeviceState, Limits
from srt.engine.embedder import embedding_info, embedding_rows, fit_to_model
from srt.engine.extend_graph import Bucket, extend_buckets
from srt.engine.memory import (
    GIB,
    KvFormat,
    allocate_pool,
    check_even_memory,
    free_bytes,
    num_pool_pages,
    page_bytes,
    pool_budget_bytes,
)
from srt.engine.pooling import Pooler
from srt.engine.trial import measure_steps
from srt.engine.worker import Worker
from srt.engine_sizes import (
    DEFAULT_MAX_RUNNING,
    PAGE_TABLE_CAP_BYTES,
    TOKENS_PER_ROW,
    graph_sizes,
)
from srt.families import load_model_config
from srt.hub import HubOptions, resolve_model
from srt.layers.attention import LatentAttention
from srt.model_config import ModelConfig, resolve_dtype
from srt.models.decoder import Decoder
from srt.models.fused import fuse_decode
from srt.models.registry import build_model
from srt.parallel import TensorParallel
from srt.weights.loader import load_weights

log = logging.getLogger(__name__)

MIXED_STEP_S, MIXED_TOKENS_GRID = 25e-3, 256


@dataclass(slots=True)
class StartupReport:
    """The start-up table: phases with their seconds, then the memory budget."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase."""
        begin = time.perf_counter()
        yield
        self.add(name, f"{time.perf_counter() - begin:.2f} s")

    def add(self, name: str, value: str) -> None:
        """One row, logged as it comes."""
        self.rows.append((name, value))
        log.info("%s: %s", name, value)


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank that is ready to run steps. source: where its weights came from."""

    worker: Worker
    scheduler: native.Scheduler
    config: ModelConfig
    limits: Limits
    max_total_tokens: int
    report: StartupReport
    embedding: EmbeddingInfo
    source: Path
    tp: TensorParallel

    @property
    def is_generation(self) -> bool:
        """Whether the model has a head to generate with."""
        return self.config.has_lm_head


def resolve_device(requested: str, device_index: int) -> torch.device:
    """The torch device of a rank; `auto` takes a GPU where there is one."""
    kind = requested
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", device_index) if kind == "cuda" else torch.device("cpu")


def use_device(device: torch.device) -> None:
    """Makes `device` this process's own; CUDA work leaves the default stream, which graphs need."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def start_rank(
    settings: Settings, tp: TensorParallel, device: torch.device, num_local_ranks: int = 1
) -> Rank:
    """Loads the model, sizes the pool, and captures the graphs of one rank.

    Args:
        num_local_ranks: ranks that share this machine's memory.

    Raises:
        LoadError: the model cannot be loaded.  ConfigError: it cannot be served as asked.
    """
    report = StartupReport()
    check_compiles(settings, tp, device)
    check_even_memory(device, tp)
    free_at_start = free_bytes(device)
    model, dtype, source = _load(settings, tp, device, report)
    tp.barrier()  # each loads at its own pace, and kernels give up on a rank that is minutes late
    settings = fit_to_model(settings, model.config)
    weight_bytes = free_at_start - free_bytes(device)
    fmt = KvFormat.of(settings.kv_cache_dtype, dtype)
    limits = make_limits(settings, model.config, device)
    sizes = _graph_sizes(settings, model.config, limits, device)
    planner = make_planner(model, fmt.name, device)
    with report.phase("run trial steps"):
        steps = measure_steps(model, limits, fmt, device, sizes, planner, tp)
    bytes_per_page = page_bytes(model.kv_spec, limits.page_size, fmt)
    budget = pool_budget_bytes(settings, device, steps, num_local_ranks)
    num_pages = num_pool_pages(settings, budget, bytes_per_page, tp)
    limits = cap_running(settings, limits, num_pages)
    sizes = _graph_sizes(settings, model.config, limits, device)
    extends = _extend_buckets(model, limits, tp) if sizes else []
    with report.phase("allocate the KV pool"):
        scales = model.kv_scale_pairs() if fmt.name == "fp8_e4m3" else None
        kv = allocate_pool(model.kv_spec, num_pages, limits.page_size, fmt, device, scales)
        state = DeviceState.allocate(limits, kv, device)
    max_mixed = max_mixed_tokens(settings, limits, steps.prompt_tokens_per_s, tp)
    scheduler_sizes = scheduler_config(
        settings,
        limits,
        num_pages,
        whole_prompts=not model.config.causal,
        shared_prefix_pages=_shared_prefix_pages(settings, limits, planner),
        max_mixed_tokens=max_mixed,
    )
    scheduler = native.Scheduler(scheduler_sizes)
    embedding = embedding_info(model.config)
    pooler = None if embedding.refusal else Pooler(model, limits.max_running, device)
    message_words = native.message_words(scheduler_sizes)
    worker = Worker(model, state, limits, message_words, planner, pooler)
    if device.type == "cpu" and tp.size == 1 and not settings.disable_cuda_graph:
        worker.runner.tapes = DecodeTapes()
    if settings.enable_torch_compile:
        worker.runner.compiled = CompiledDecode(model, settings.torch_compile_max_bs)
    if sizes:
        _capture(worker, sizes, extends, report)
    max_total_tokens = (num_pages - 1) * limits.page_size
    report.add("weights", f"{weight_bytes / GIB:.2f} GiB")
    report.add("KV pool", f"{num_pages * bytes_per_page / GIB:.2f} GiB, {max_total_tokens} tokens")
    report.add("activations of a step", f"{steps.activation_bytes / GIB:.2f} GiB")
    report.add("set aside for CUDA graphs", f"{steps.graph_bytes / GIB:.2f} GiB")
    if tp.summed_by:
        report.add("sums over ranks", tp.summed_by)
    report.add("avail mem", f"{free_bytes(device) / GIB:.2f} GB")
    if max_mixed:
        report.add("prompt tokens beside decodes", f"{max_mixed}, while few prompts wait")
    for name, value in embedding_rows(model.config):
        report.add(name, value)
    return Rank(
        worker=worker,
        scheduler=scheduler,
        config=model.config,
        limits=limits,
        max_total_tokens=max_total_tokens,
        report=report,
        embedding=embedding,
        source=source,
        tp=tp,
    )


def _capture(
    worker: Worker, sizes: list[int], extends: list[Bucket], report: StartupReport
) -> None:
    """Captures the CUDA graphs."""
    runner = worker.runner
    with report.phase(f"capture {len(sizes)} CUDA graphs, batch 1 to {sizes[-1]}"):
        runner.capture(sizes, extends)
    largest = max((bucket.num_tokens for bucket in runner.extend_buckets), default=0)
    report.add("extend steps as CUDA graphs", f"up to {largest} tokens" if largest else "none")
    if (done := runner.compiled) is not None:
        report.add(f"of that, compile {len(done.sizes)} batch sizes", f"{done.seconds:.2f} s")


def make_limits(settings: Settings, config: ModelConfig, device: torch.device) -> Limits:
    """The engine's sizes, before the pool's size is known."""
    max_seq_len = config.context_len
    row_bytes = 4 * -(-max_seq_len // settings.page_size)
    default = min(DEFAULT_MAX_RUNNING[device.type], max(1, PAGE_TABLE_CAP_BYTES // row_bytes))
    max_running = settings.max_running_requests or default
    max_step_tokens = prefill_tokens(settings, max_seq_len) + max_running
    return Limits(
        max_running=max_running,
        max_seq_len=max_seq_len,
        max_step_tokens=max_step_tokens,
        max_logits=max_step_tokens,
        page_size=settings.page_size,
    )


def prefill_tokens(settings: Settings, max_seq_len: int) -> int:
    """Prompt tokens of one step: a chunk, or the longest prompt where chunking is off."""
    if settings.chunked_prefill_size > 0:
        return min(settings.chunked_prefill_size, settings.max_prefill_tokens)
    return max(settings.max_prefill_tokens, max_seq_len)


def max_mixed_tokens(
    settings: Settings, limits: Limits, prompt_tokens_per_s: float, tp: TensorParallel
) -> int:
    """How many prompt tokens a step with decodes takes while few prompts wait; 0: any number.

    A step as long as that is the longest pause between a stream's tokens. It is the same on every
    rank, and on a coarse grid, so that one machine's starts cut prompts alike.
    """
    if settings.max_mixed_tokens is not None:
        return settings.max_mixed_tokens
    found = int(prompt_tokens_per_s * MIXED_STEP_S) // MIXED_TOKENS_GRID * MIXED_TOKENS_GRID
    if tp.size > 1:
        least = torch.tensor([found])
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=tp.host_group)
        found = int(least)
    if prompt_tokens_per_s == 0 or found >= prefill_tokens(settings, limits.max_seq_len):
        return 0
    return max(found, MIXED_TOKENS_GRID)


def cap_running(settings: Settings, limits: Limits, num_pages: int) -> Limits:
    """`limits` with no more rows than the pool can feed; message room follows."""
    usable = num_pages - 1
    max_running = min(limits.max_running, usable)
    if settings.max_running_requests is None:
        max_running = max(1, min(max_running, usable * limits.page_size // TOKENS_PER_ROW))
    max_step_tokens = prefill_tokens(settings, limits.max_seq_len) + max_running
    return Limits(
        max_running=max_running,
        max_seq_len=limits.max_seq_len,
        max_step_tokens=max_step_tokens,
        max_logits=max_step_tokens,
        page_size=limits.page_size,
    )


def scheduler_config(
    settings: Settings,
    limits: Limits,
    num_pages: int,
    *,
    whole_prompts: bool = False,
    shared_prefix_pages: int = 0,
    max_mixed_tokens: int = 0,
) -> native.SchedulerConfig:
    """The scheduler's settings."""
    start, floor = settings.start_new_token_ratio, settings.min_new_token_ratio
    return native.SchedulerConfig(
        num_pages=num_pages,
        page_size=limits.page_size,
        max_running=limits.max_running,
        max_seq_len=limits.max_seq_len,
        max_step_tokens=limits.max_step_tokens,
        max_prefill_tokens=prefill_tokens(settings, limits.max_seq_len),
        policy=settings.schedule_policy,
        enable_radix=not settings.disable_radix_cache,
        enable_mixed=not settings.disable_mixed_chunk,
        init_new_token_ratio=start,
        min_new_token_ratio=floor,
        new_token_ratio_decay=(start - floor) / settings.new_token_ratio_decay_steps,
        clip_max_new_tokens=settings.clip_max_new_tokens,
        random_seed=settings.random_seed or 0,
        self_check=settings.self_check,
        whole_prompts=whole_prompts,
        shared_prefix_pages=shared_prefix_pages,
        max_mixed_tokens=0 if whole_prompts else max_mixed_tokens,
    )


def find_model(settings: Settings, model: str, *, with_weights: bool) -> Path:
    """The local files of a model. Raises LoadError."""
    options = HubOptions(
        revision=settings.revision if model == settings.model_path else None,
        download_dir=settings.download_dir,
        use_modelscope=settings.use_modelscope,
        with_code=settings.trust_remote_code,
    )
    return resolve_model(model, options, with_weights=with_weights)


def read_config(settings: Settings, source: Path) -> ModelConfig:
    """A checkpoint's config as the settings have it. Raises LoadError, ConfigError."""
    return load_model_config(
        source,
        context_len=settings.context_length,
        overrides=settings.json_model_override_args,
        quantization=settings.quantization,
        is_embedding=settings.is_embedding,
    )


def _load(
    settings: Settings, tp: TensorParallel, device: torch.device, report: StartupReport
) -> tuple[Decoder, torch.dtype, Path]:
    needs_weights = settings.load_format != "dummy"
    with report.phase("find the model"):
        source = find_model(settings, settings.model_path, with_weights=needs_weights)
        config = read_config(settings, source)
    dtype: torch.dtype = getattr(torch, resolve_dtype(settings.dtype, config.dtype, device.type))
    with report.phase("load weights"):
        model = build_model(config, tp, device, dtype)
        load_weights(model, model.weight_table(), source, tp, load_format=settings.load_format)
    if not settings.disable_fused_decode and not settings.enable_torch_compile:
        model.fused = fuse_decode(model)
    return model, dtype, source


def make_planner(model: Decoder, kv_format: str, device: torch.device) -> DecodePlanner | None:
    """The planner of the decode attention, where the device has a kernel for the model."""
    if device.type != "cuda" or model.lm_head is None:
        return None
    kinds = decode_kinds(model, model.kv_spec.head_dim)
    return DecodePlanner(kinds, kv_format, device) if kinds else None


def _extend_buckets(model: Decoder, limits: Limits, tp: TensorParallel) -> list[Bucket]:
    """Extend steps to capture: none where ranks might not agree which, or decodes need the host."""
    if tp.size > 1 or any(isinstance(m, LatentAttention) for m in model.modules()):
        return []
    return extend_buckets(limits.max_step_tokens, limits.max_running)


def _shared_prefix_pages(settings: Settings, limits: Limits, planner: DecodePlanner | None) -> int:
    """From how many pages on decodes may share a prefix; 0: they never do."""
    if planner is None or settings.disable_cascade_attn:
        return 0
    return -(-planner.round_tokens // limits.page_size)


def _graph_sizes(
    settings: Settings, config: ModelConfig, limits: Limits, device: torch.device
) -> list[int]:
    if device.type != "cuda" or settings.disable_cuda_graph or not config.has_lm_head:
        return []
    return graph_sizes(min(limits.max_running, settings.cuda_graph_max_bs or limits.max_running))
