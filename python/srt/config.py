"""Every setting of the server and the engine: declared once, checked once, frozen."""

from __future__ import annotations

import argparse
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from srt import __version__
from srt.errors import ConfigError
from srt.flags import add_flags, check_limits, collect, flag, flag_name, specs
from srt.foreign_flags import ALWAYS_SO, REFUSED_FLAGS
from srt.quant_config import UNSUPPORTED

_model = partial(flag, "model and tokenizer")
_http = partial(flag, "HTTP")
_memory = partial(flag, "memory and scheduling")
_parallel = partial(flag, "parallel")
_run = partial(flag, "device and step loop")
_log = partial(flag, "logging")

# The share of device memory for weights and KV pool by tensor parallel size: NCCL needs room too.
MEM_FRACTION_BY_TP = ((16, 0.79), (8, 0.83), (4, 0.85), (2, 0.87), (1, 0.88))

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
LOAD_FORMATS = ("auto", "pt", "safetensors", "npcache", "gguf", "dummy")
QUANTIZATIONS = ("fp8", *UNSUPPORTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, checked when made. Raises ConfigError naming flag, value and limit."""

    model_path: str = _model("a local folder, a GGUF file or a hub id", names=("--model",))
    tokenizer_path: str | None = _model(
        "where the tokenizer is, if not with the model", None, names=("--tokenizer",)
    )
    tokenizer_mode: str = _model(
        "'slow' runs the checkpoint's Python tokenizer", "auto", choices=("auto", "slow")
    )
    skip_tokenizer_init: bool = _model("take input_ids and answer token ids only", False)
    load_format: str = _model("how weights are stored", "auto", choices=LOAD_FORMATS)
    dtype: str = _model("number format of weights and activations", "auto", choices=DTYPES)
    kv_cache_dtype: str = _model(
        "number format of the KV pool", "auto", choices=("auto", "fp8_e5m2", "fp8_e4m3")
    )
    quantization: str | None = _model(
        "how linear weights are quantized", None, choices=QUANTIZATIONS
    )
    trust_remote_code: bool = _model("let the checkpoint's own Python run", False)
    context_length: int | None = _model(
        "context window, if not the model's", None, low=1, names=("--context-len",)
    )
    json_model_override_args: dict[str, Any] | None = _model(  # noqa: RUF009
        "entries that replace those of config.json", None
    )
    revision: str | None = _model("branch, tag or commit on the hub", None)
    download_dir: str | None = _model("where hub files are kept", None)
    use_modelscope: bool = _model(
        "fetch hub ids from ModelScope", False, env=("SGLANG_USE_MODELSCOPE",)
    )
    served_model_name: str | None = _model("the id in /v1/models, if not the model path", None)
    chat_template: str | None = _model("a built-in name, a .json or a .jinja file", None)
    tool_call_parser: str = _model(
        "how the model writes tool calls: auto (by the chat template), none, hermes, llama3, "
        "mistral, deepseek, kimi, qwen3_coder or glm45",
        "auto",
    )
    reasoning_parser: str = _model(
        "how the model marks its thoughts: auto (by the chat template), none, deepseek-r1, qwen3, "
        "kimi or magistral",
        "auto",
    )
    is_embedding: bool = _model(
        "embed instead of generating: any model, pooled as its checkpoint says", False
    )

    host: str = _http("address to listen on", "127.0.0.1")
    port: int = _http("port to listen on", 30000, low=0, high=65535)
    api_key: tuple[str, ...] = _http(
        "clients must send one of these as a Bearer token", (), secret=True
    )
    ssl_keyfile: str | None = _http("private key (PEM): serve HTTPS", None)
    ssl_certfile: str | None = _http("certificate chain (PEM) that goes with it", None)
    ready_timeout: float = _http(
        "seconds of an engine's silence after which /ready says no", 10.0, low=0.5
    )
    http_workers: int = _http(
        "processes that parse, tokenize and answer requests, all at one port", 1, low=1, high=64
    )
    max_request_bytes: int = _http("largest request body", 64 << 20, low=1024)
    file_storage_path: str = _http(
        "folder where uploaded files and batches are kept over restarts",
        "srt_storage",
        names=("--file-storage-pth",),
    )
    cors_allow_origins: tuple[str, ...] = _http("browser origins that may call the server", ())
    shutdown_timeout: float = _http("seconds that running requests get after SIGTERM", 60.0, low=0)
    skip_warmup: bool = _http(
        "do not send a request through the engine before serving",
        False,
        names=("--skip-server-warmup",),
    )

    mem_fraction_static: float | None = _memory(
        "share of device memory for weights and KV pool",
        None,
        low=0.01,
        high=0.99,
        names=("--mem-fraction", "--mem-frac"),
    )
    max_running_requests: int | None = _memory(
        "sequences in one step", None, low=1, names=("--max-num-reqs",)
    )
    max_queued_requests: int = _memory(
        "waiting sequences, above which clients get 429", 8192, low=1
    )
    max_total_tokens: int | None = _memory(
        "KV pool size in tokens; never more than fits", None, low=1
    )
    page_size: int = _memory("tokens in one KV page", 16, low=1, high=256)
    chunked_prefill_size: int = _memory("prompt tokens in one step; 0 or less: whole prompts", 8192)
    max_prefill_tokens: int = _memory("prompt tokens that one step may admit", 16384, low=1)
    max_mixed_tokens: int | None = _memory(
        "prompt tokens of a step that also decodes, while few prompts wait; 0: no such bound; by "
        "default what a GPU runs in about 25 ms",
        None,
        low=0,
    )
    schedule_policy: str = _memory(
        "order of the waiting queue", "lpm", choices=("lpm", "random", "fcfs", "dfs-weight")
    )
    schedule_conservativeness: float = _memory(
        "scales how much room running requests are given", 1.0, low=0
    )
    enable_priority_scheduling: bool = _memory("honour a request's priority", False)
    stream_interval: int = _memory("tokens between streamed chunks", 1, low=1)
    random_seed: int | None = _memory(
        "seed of the engine; drawn if absent", None, low=0, high=2**63 - 1
    )
    disable_radix_cache: bool = _memory("do not share prefixes", False)
    disable_mixed_chunk: bool = _memory("keep decode rows out of prefill steps", False)
    init_new_token_ratio: float = _memory(
        "expected share of max_new_tokens that a request uses",
        0.7,
        low=0,
        high=1,
        env=("SGLANG_INIT_NEW_TOKEN_RATIO",),
    )
    min_new_token_ratio_factor: float = _memory(
        "floor of that share, as part of its start",
        0.14,
        low=0,
        high=1,
        env=("SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR",),
    )
    new_token_ratio_decay_steps: int = _memory(
        "decode steps from start to floor", 600, low=1, env=("SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS",)
    )
    clip_max_new_tokens: int = _memory(
        "most new tokens that admission counts for one request",
        4096,
        low=1,
        env=("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "SGLANG_CLIP_MAX_NEW_TOKENS"),
    )

    tp_size: int = _parallel(
        "GPUs that share one copy of the model", 1, low=1, names=("--tensor-parallel-size", "--tp")
    )
    dp_size: int = _parallel(
        "copies of the model", 1, low=1, names=("--data-parallel-size", "--dp")
    )
    load_balance_method: str = _parallel(
        "how requests are dealt to copies", "round_robin", choices=("round_robin", "shortest_queue")
    )
    dist_init_addr: str | None = _parallel(
        "host:port of node 0", None, names=("--nccl-init-addr", "--nccl-init")
    )
    nnodes: int = _parallel("machines that share one copy", 1, low=1)
    node_rank: int = _parallel("which of them this is", 0, low=0)

    device: str = _run(
        "where the model runs; auto takes a GPU if there is one",
        "auto",
        choices=("auto", "cuda", "cpu"),
    )
    grammar_backend: str = _run(
        "what compiles grammars; none: requests with one are refused",
        "llguidance",
        choices=("llguidance", "none", "outlines", "xgrammar"),
    )
    grammar_timeout: float = _run(
        "seconds that compiling one request's grammar may take", 10.0, low=0.1, high=600
    )
    constrained_json_whitespace_pattern: str | None = _run(
        "regex of what may stand between the tokens of a JSON answer", None
    )
    disable_regex_jump_forward: bool = _run(
        "one step for every token, also where a grammar forces the next ones", False
    )
    disable_overlap_schedule: bool = _run("wait for each step before planning the next", False)
    disable_cuda_graph: bool = _run(
        "launch every kernel from the host; on the CPU: no recorded steps", False
    )
    cuda_graph_max_bs: int | None = _run("largest decode batch that is a CUDA graph", None, low=1)
    enable_torch_compile: bool = _run(
        "compile decode steps before CUDA graphs record them (docs/performance.md: rarely faster)",
        False,
    )
    torch_compile_max_bs: int = _run(
        "largest decode batch that is compiled", 32, low=1, names=("--max-torch-compile-bs",)
    )
    disable_fused_decode: bool = _run(
        "run the layers of a step of up to 8 decodes as separate kernels", False
    )
    disable_custom_all_reduce: bool = _run(
        "let NCCL sum over ranks in all cases, also where GPUs reach each other over NVLink", False
    )
    disable_cascade_attn: bool = _run(
        "let every sequence read its own KV, also where decodes share a prefix", False
    )
    watchdog_timeout: float = _run(
        "seconds without a step after which the engine counts as hung", 300.0, low=1
    )
    self_check: bool = _run("check the core's invariants after every step (slow)", False)

    log_level: str = _log("what is logged", "info", choices=LOG_LEVELS)
    log_level_http: str | None = _log("the same for HTTP requests", None, choices=LOG_LEVELS)
    log_requests: bool = _log("log each request's parameters", False)
    request_log: str | None = _log(
        "a JSON line for each request that ended, to this file; -: standard error", None
    )
    otlp_endpoint: str | None = _log(
        "send a trace of each request to this OpenTelemetry collector, such as "
        "http://127.0.0.1:4318",
        None,
    )
    decode_log_interval: int = _log("steps between lines on throughput; 0: none", 40, low=0)
    enable_metrics: bool = _log("serve Prometheus metrics at /metrics", False)
    enable_metrics_aliases: bool = _log("tell metrics by sglang:* and vllm:* names too", False)
    profiler_dir: str = _log(
        "where /start_profile puts traces", "srt_profile", env=("SGLANG_TORCH_PROFILER_DIR",)
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.random_seed is None:  # set here, so that every rank of every node has the same
            drawn = secrets.randbelow(2**30) if self.nnodes == 1 else 0
            object.__setattr__(self, "random_seed", drawn)
        self._check_parallel()
        self._check_page_size()
        self._check_http()
        self._check_unsupported()

    @property
    def tokenizer_source(self) -> str:
        """Where the tokenizer comes from."""
        return self.tokenizer_path or self.model_path

    @property
    def model_name(self) -> str:
        """The model's id towards clients."""
        return self.served_model_name or self.model_path

    @property
    def mem_fraction(self) -> float:
        """The share of device memory for weights and KV pool."""
        if self.mem_fraction_static is not None:
            return self.mem_fraction_static
        return next(share for size, share in MEM_FRACTION_BY_TP if self.tp_size >= size)

    @property
    def min_new_token_ratio(self) -> float:
        """The floor of the adaptive estimate, in [0, 1]."""
        return min(1.0, self.start_new_token_ratio * self.min_new_token_ratio_factor)

    @property
    def start_new_token_ratio(self) -> float:
        """Where the adaptive estimate starts, in [0, 1]."""
        return min(1.0, self.init_new_token_ratio * self.schedule_conservativeness)

    def public(self) -> dict[str, Any]:
        """All settings by name, without secrets."""
        return {
            name: getattr(self, name)
            for name, (_, spec) in specs(Settings).items()
            if not spec.secret
        }

    def _check_parallel(self) -> None:
        if self.tp_size % self.nnodes:
            raise ConfigError(
                f"--tp-size is {self.tp_size}; it must be a multiple of --nnodes, {self.nnodes}"
            )
        if self.node_rank >= self.nnodes:
            raise ConfigError(
                f"--node-rank is {self.node_rank}; it must be below --nnodes, {self.nnodes}"
            )
        if self.nnodes > 1 and self.dist_init_addr is None:
            raise ConfigError("--dist-init-addr must name host:port of node 0 when --nnodes > 1")
        if self.nnodes > 1 and self.dp_size > 1:
            raise ConfigError(
                f"--dp-size is {self.dp_size}; with --nnodes {self.nnodes} it must be 1"
            )
        if self.dist_init_addr is not None:
            host, _, port = self.dist_init_addr.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ConfigError(
                    f"--dist-init-addr is {self.dist_init_addr!r}; it must be host:port"
                )

    def _check_http(self) -> None:
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ConfigError("--ssl-keyfile and --ssl-certfile go together; one is missing")
        if any(not key or not key.isascii() for key in self.api_key):
            raise ConfigError("--api-key must be ASCII and not empty")
        if self.enable_metrics_aliases and not self.enable_metrics:
            raise ConfigError("--enable-metrics-aliases needs --enable-metrics")

    def _check_page_size(self) -> None:
        if self.page_size & (self.page_size - 1):
            raise ConfigError(f"--page-size is {self.page_size}; it must be a power of two")

    def _check_unsupported(self) -> None:
        """Values that the flags foresee and this version cannot honour."""
        refusals = (
            (
                "quantization",
                self.quantization not in (None, "fp8"),
                UNSUPPORTED.get(self.quantization or "", ""),
            ),
            ("load_format", self.load_format == "npcache", "safetensors load faster than npcache"),
            (
                "grammar_backend",
                self.grammar_backend in ("outlines", "xgrammar"),
                "grammars are compiled by llguidance",
            ),
        )
        for name, is_used, why in refusals:
            if is_used:
                raise ConfigError(f"{flag_name(name)} {getattr(self, name)} is refused: {why}")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare every setting on `parser`, which must not allow abbreviations."""
    add_flags(parser, Settings, REFUSED_FLAGS)
    kept = parser.add_argument_group("always so (accepted for older command lines)")
    for option, why in ALWAYS_SO.items():
        kept.add_argument(option, dest="always_so", action="append_const", const=option, help=why)


def settings_from(given: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from parsed arguments and the environment; arguments win. Raises ConfigError."""
    values = collect(Settings, given, environ)
    if "model_path" not in values:
        raise ConfigError("--model-path is required")
    return Settings(**values)


def parse_settings(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from a command line. Raises ConfigError; --help and --version exit."""
    parser = argparse.ArgumentParser(
        prog="srt-server",
        description="Serve a language model over HTTP: /generate and the OpenAI API.",
        epilog="Every setting can also be given as $SRT_<NAME>, for example SRT_PORT=8000.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"srt {__version__}")
    add_settings(parser)
    return settings_from(parser.parse_args(argv), environ)


def always_so(argv: Sequence[str]) -> list[str]:
    """Sentences about flags in `argv` that change nothing because their wish always holds."""
    return [
        f"{option} changes nothing: {ALWAYS_SO[option]}" for option in argv if option in ALWAYS_SO
    ]


def settings_json(settings: Settings) -> str:
    """Settings as JSON, for handing them to another process."""
    return json.dumps({name: getattr(settings, name) for name in specs(Settings)})


def settings_from_json(text: str) -> Settings:
    """The inverse of `settings_json`. Raises ConfigError."""
    values = json.loads(text)
    for name in ("cors_allow_origins", "api_key"):
        values[name] = tuple(values[name])
    return Settings(**values)
