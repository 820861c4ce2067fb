"""Types of the native extension; moves in the same commit as `cpp/bind/`."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Buffer

HAS_CUDA: bool

class InvalidArgument(ValueError): ...
class InternalError(RuntimeError): ...
class CudaError(RuntimeError): ...

# ---- scheduler (bind_scheduler.cc) ----

MAX_DRAFTS: int

class SchedulerConfig:
    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        max_running: int,
        max_seq_len: int,
        max_step_tokens: int,
        max_prefill_tokens: int,
        policy: str = "lpm",
        enable_radix: bool = True,
        enable_mixed: bool = True,
        init_new_token_ratio: float = 0.7,
        min_new_token_ratio: float = 0.1,
        new_token_ratio_decay: float = 0.001,
        clip_max_new_tokens: int = 4096,
        random_seed: int = 0,
        self_check: bool = False,
        work_words: int = 0,
        max_step_logits: int = 0,
        max_extra_words: int = 1024,
        shared_prefix_pages: int = 0,
        max_mixed_tokens: int = 0,
        whole_prompts: bool = False,
    ) -> None: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def max_running(self) -> int: ...
    @property
    def max_seq_len(self) -> int: ...
    @property
    def max_step_tokens(self) -> int: ...
    @property
    def max_pages_per_seq(self) -> int: ...
    @property
    def max_tokens(self) -> int:
        """Query tokens of the largest step: max(max_step_tokens, max_running)."""

def message_words(config: SchedulerConfig) -> int:
    """int32 words that the message buffer must hold, `work_words` included."""

class StepPlan:
    @property
    def step(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def num_seqs(self) -> int: ...
    @property
    def num_decode(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def num_logits(self) -> int: ...
    @property
    def num_masked(self) -> int:
        """Samples of `sync` sequences: rows of the grammar bitmask, in sample order."""
    @property
    def num_drafts(self) -> int:
        """Of the decodes, guesses about what follows another."""
    @property
    def is_decode_only(self) -> bool: ...
    @property
    def max_q_len(self) -> int: ...
    @property
    def max_seq_len(self) -> int: ...
    @property
    def any_sampling_flags(self) -> int:
        """OR of the samples' flags (docs/contracts.md section 3)."""
    @property
    def all_greedy(self) -> bool: ...
    @property
    def max_top_logprobs(self) -> int: ...
    @property
    def num_new_seqs(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def num_extend_tokens(self) -> int: ...
    @property
    def num_retracted(self) -> int: ...
    @property
    def sample_seq_ids(self) -> NDArray[np.uint64]:
        """[num_samples]"""
    @property
    def logit_seq_ids(self) -> NDArray[np.uint64]:
        """[num_logits]: the samples, then the prompt-logprob rows."""
    @property
    def logit_positions(self) -> NDArray[np.int32]:
        """[num_logits]: position of the token that the row predicts."""
    @property
    def prompt_end_seq_ids(self) -> NDArray[np.uint64]:
        """Sequences with max_new_tokens 0 whose prompt ends with this step."""
    @property
    def prompt_end_seqs(self) -> NDArray[np.int32]:
        """Their places among the step's sequences."""
    @property
    def num_prefix_groups(self) -> int: ...
    @property
    def prefix_groups(self) -> NDArray[np.int32]:
        """[num_decode], or [0] when off: group that shares a prefix, -1: none."""
    @property
    def prefix_pages(self) -> NDArray[np.int32]:
        """[num_decode], or [0] when off: pages that the group shares."""

class Events:
    """Parallel arrays, one entry per piece of news."""

    def __len__(self) -> int: ...
    @property
    def num_events(self) -> int: ...
    @property
    def num_finished(self) -> int: ...
    @property
    def seq_ids(self) -> NDArray[np.uint64]: ...
    @property
    def tokens(self) -> NDArray[np.int32]:
        """-1: the event brings none."""
    @property
    def finish(self) -> NDArray[np.uint8]:
        """`srt.types.FinishReason`; != 0: the sequence's last event."""
    @property
    def cached_tokens(self) -> NDArray[np.int32]:
        """Prompt tokens found in the cache, at a sequence's first event; else -1."""
    @property
    def sample_idx(self) -> NDArray[np.int32]:
        """The token's place in the committed step's samples, or -1."""
    @property
    def queued_us(self) -> NDArray[np.int64]:
        """From add to admission, at a sequence's first event if it was admitted; else -1."""

class Trace:
    """Where a sequence's time went, in the clock of `tell_time`; -1: the moment has not come."""

    added_us: int
    admitted_us: int
    first_token_us: int
    ended_us: int
    retracted_us: int
    requeued_for_us: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_chunks: int
    num_extend_tokens: int
    num_retractions: int
    num_steps: int
    sum_batch: int
    max_batch: int
    finish: int

class SchedulerStats:
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_in_flight(self) -> int: ...
    @property
    def num_total_pages(self) -> int: ...
    @property
    def num_free_pages(self) -> int: ...
    @property
    def num_cached_pages(self) -> int: ...
    @property
    def num_evictable_pages(self) -> int: ...
    @property
    def num_used_pages(self) -> int:
        """Owned by sequences, or cached and locked by them."""
    @property
    def num_total_tokens(self) -> int: ...
    @property
    def num_free_tokens(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def num_used_tokens(self) -> int: ...
    @property
    def num_evicted_pages(self) -> int: ...
    @property
    def num_retracted(self) -> int: ...
    @property
    def num_drafts(self) -> int: ...
    @property
    def num_right_drafts(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_prompt_cached_tokens(self) -> int: ...
    @property
    def new_token_ratio(self) -> float: ...

class Scheduler:
    """docs/contracts.md section 4. Raises InvalidArgument (a ValueError) on misuse."""

    def __init__(self, config: SchedulerConfig) -> None: ...
    def add(
        self,
        seq_id: int,
        tokens: bytes | NDArray[np.int32] | Buffer,
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        min_p: float = 0.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop_token_ids: Sequence[int] = (),
        logit_bias: Sequence[tuple[int, float]] = (),
        return_logprob: bool = False,
        logprob_start: int = -1,
        top_logprobs: int = 0,
        priority: int = 0,
        namespace: str = "",
        sync: bool = False,
    ) -> None: ...
    def abort(self, seq_id: int) -> None: ...
    def draft(self, seq_id: int, tokens: Sequence[int]) -> None:
        """What probably follows a `sync` sequence's newest token: its next decode tries it."""
    def schedule(self, message: Tensor | NDArray[np.int32]) -> StepPlan | None: ...
    def commit(self, step: int, tokens: Tensor | NDArray[np.int32]) -> None: ...
    def drain_events(self) -> Events: ...
    def flush(self) -> bool: ...
    def stats(self) -> SchedulerStats: ...
    def tell_time(self, now_us: int) -> None:
        """What time it is, for the traces of what happens until the next call."""
    def trace(self, seq_id: int) -> Trace | None:
        """Of a sequence that lives, or that ended not too long ago."""
    def row_of(self, seq_id: int) -> int:
        """-1: waits, or is unknown."""
    def check_invariants(self) -> None: ...

# ---- kernels ----

def __getattr__(name: str) -> Any: ...

# ---- CPU kernels (bind_cpu.cc); arguments as in `srt.ops` ----

class CpuTape:
    """Kernel calls recorded between begin and end on one thread; the caller keeps their tensors."""

    def begin(self) -> None: ...
    def end(self) -> None: ...
    def replay(self) -> None: ...
    def __len__(self) -> int: ...

def cpu_isa() -> str: ...
def cpu_embedding(ids: Tensor, weight: Tensor, out: Tensor) -> None: ...
def cpu_release_threads() -> bool: ...
def cpu_rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    weight_offset: float,
    residual: Tensor | None,
    out: Tensor,
) -> None: ...
def cpu_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out: Tensor
) -> None: ...
def cpu_gated(x: Tensor, act: str, out: Tensor) -> None: ...
def cpu_rotary(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool
) -> None: ...
def cpu_store_kv(
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_format: str,
    k_scale: float,
    v_scale: float,
) -> None: ...
def cpu_store_latent(
    x: Tensor, slots: Tensor, cache: Tensor, kv_format: str, scale: float
) -> None: ...
def cpu_rotary_store_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    interleaved: bool,
    kv_format: str,
    k_scale: float,
    v_scale: float,
) -> None: ...
def cpu_paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    rows: Tensor,
    q_indptr: Tensor,
    seq_lens: Tensor,
    page_table: Tensor,
    scale: float,
    window_left: int,
    softcap: float,
    causal: bool,
    kv_format: str,
    k_scale: float,
    v_scale: float,
    out: Tensor,
) -> None: ...
def cpu_linear(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None: ...
def cpu_head_linear(x: Tensor, w: Tensor, y: Tensor, transposed: bool) -> None: ...
def cpu_moe_route(
    logits: Tensor,
    weights: Tensor,
    experts: Tensor,
    softcap: float,
    norm_order: float,
    scale: float,
    groups: int,
    top_groups: int,
) -> None: ...
def cpu_moe_experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    experts: Tensor,
    act: str,
    shared: Tensor | None,
    shared_gate: Tensor | None,
    places: Tensor,
    buffer: Tensor,
    out: Tensor,
) -> None: ...
def cpu_linear_fp8(
    x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, y: Tensor
) -> None:
    """weight: e4m3 as uint8 [out, in]; scales: [out], or [out, ceil(in / 128)] of groups."""

def cpu_prepare_step(
    message: Tensor,
    page_table: Tensor,
    last_tokens: Tensor,
    slot_tokens: Tensor,
    buffers: tuple[Tensor, ...],
    padded_seqs: int,
    padded_tokens: int,
) -> None: ...
def cpu_sample(
    logits: Tensor,
    message: Tensor,
    sampling: Tensor,
    sample_rows: Tensor,
    rows: Tensor,
    seq_lens: Tensor,
    prompt_lens: Tensor,
    page_table: Tensor,
    slot_tokens: Tensor,
    last_tokens: Tensor,
    page_size: int,
    bitmask: Tensor | None,
    tokens: Tensor,
) -> None: ...
def cpu_token_logprobs(logits: Tensor, tokens: Tensor, out: Tensor) -> None: ...

# ---- CUDA extend attention (bind_cuda_extend.cc) ----

def cuda_extend_plan_words(
    num_tokens: int, num_seqs: int, num_q_heads: int, num_kv_heads: int
) -> int: ...
def cuda_extend_plan(
    q_indptr: Tensor,
    seq_lens: Tensor,
    rows: Tensor,
    plan: Tensor,
    *,
    num_tokens: int,
    first_seq: int,
    num_q_heads: int,
    num_kv_heads: int,
    key_bytes: int,
    num_decode: Tensor | None = None,
    stream: int,
) -> None: ...
def cuda_extend_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    page_table: Tensor,
    num_seqs: int,
    plan: Tensor,
    out: Tensor,
    lse: Tensor | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
    window_left: int = -1,
    causal: bool = True,
    kv_format: str = "",
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    portable: bool = False,
    stream: int,
) -> None: ...

# ---- sums over the ranks of a host (bind_cuda_comm.cc; where HAS_CUDA) ----

MAX_ALL_REDUCE_HIDDEN: int

def peer_link(device: int, peer: int) -> tuple[bool, bool]:
    """Whether a device may read another's memory, and whether with atomics (NVLink)."""

class Peers:
    """A rank's inbox on its device, and those of its peers. See cuda/comm/peers.h.

    max_blocks 0: as many as the device runs at once.
    """

    def __init__(self, device: int, rank: int, size: int, max_blocks: int = 0) -> None: ...
    @property
    def inbox(self) -> int: ...
    def handle(self) -> bytes: ...
    def connect(self, handles: Sequence[bytes]) -> None: ...
    def connect_here(self, inboxes: Sequence[int]) -> None: ...
    def disconnect(self) -> None: ...
    def close(self) -> None: ...
    def all_reduce(
        self, x: Tensor, out: Tensor, two_shots: bool, pdl: bool, stream: int
    ) -> None: ...
    def all_gather(self, x: Tensor, out: Tensor, pdl: bool, stream: int) -> None: ...
    def all_reduce_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor,
        scales: Tensor | None,
        eps: float,
        weight_offset: float,
        centered: bool,
        pdl: bool,
        stream: int,
        given: Tensor | None = None,
        limit: float = 0.0,
        two_shots: bool = False,
    ) -> None: ...

# ---- decode attention (bind_cuda_decode.cc; where HAS_CUDA) ----

DECODE_HEAD_DIMS: tuple[int, ...]

class DecodeGrid:
    """How a device runs decode attention for some heads; num_sms 0: the current device."""

    def __init__(
        self,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: str = "",
        num_sms: int = 0,
    ) -> None: ...
    @property
    def num_ctas(self) -> int: ...
    @property
    def num_head_blocks(self) -> int: ...
    @property
    def tile_tokens(self) -> int: ...
    @property
    def round_tokens(self) -> int:
        """Shared prefixes are read in pieces of so many tokens."""

    @property
    def share_rows(self) -> int:
        """Query heads of a KV head that read a shared prefix together; 0: none do."""

    round_weight: float
    """The planner's price of shared tiles, in tiles of one sequence."""

    @property
    def workspace_bytes(self) -> int: ...

def decode_plan_words(plans: Sequence[tuple[DecodeGrid, int]]) -> int: ...
def plan_shares(message: Tensor, plans: Sequence[tuple[DecodeGrid, int]]) -> bool: ...
def max_decode_plan_words(plans: Sequence[tuple[DecodeGrid, int]], max_decode: int) -> int: ...
def plan_decode(
    message: Tensor,
    plans: Sequence[tuple[DecodeGrid, int]],
    prefix_groups: NDArray[np.int32] | None = None,
    prefix_pages: NDArray[np.int32] | None = None,
    page_size: int = 1,
) -> int: ...
def cuda_decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    message: Tensor,
    workspace: Tensor,
    out: Tensor,
    *,
    scale: float,
    window_left: int = -1,
    softcap: float = 0.0,
    kv_format: str = "",
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    plan_offset: int = 0,
    out_scales: Tensor | None = None,
    pdl: bool = False,
    stream: int,
) -> None: ...

# ---- decode steps of few rows (bind_cuda_decode_step.cc; where HAS_CUDA) ----

# Layers, hidden size, intermediate size, query heads, KV heads, head_dim.
DecodeStepSizes: TypeAlias = tuple[int, int, int, int, int, int]
MAX_DECODE_STEP_ROWS: int
DECODE_STEP_HEADER_BYTES: int

def decode_step_fits(sizes: DecodeStepSizes) -> bool: ...
def decode_step_bytes(sizes: DecodeStepSizes) -> int: ...
def cuda_decode_step(
    x: Tensor,
    layers: Tensor,
    positions: Tensor,
    slots: Tensor,
    rows: Tensor,
    seq_lens: Tensor,
    page_table: Tensor,
    cos_sin: Tensor,
    workspace: Tensor,
    sizes: DecodeStepSizes,
    page_size: int,
    eps: float,
    scale: float,
    kv_format: str,
    pdl: bool,
    stream: int,
) -> None: ...

# ---- latent attention (bind_cuda_latent.cc; where HAS_CUDA) ----

LATENT_DIMS: tuple[int, int]

def latent_blocks(num_heads: int) -> tuple[int, int]: ...
def cuda_latent_decode(
    q: Tensor,
    cache: Tensor,
    page_table: Tensor,
    message: Tensor | None,
    workspace: Tensor | None,
    out: Tensor,
    *,
    plan_offset: int = 0,
    **options: object,
) -> None: ...
def cuda_latent_extend(
    q: Tensor,
    cache: Tensor,
    page_table: Tensor,
    num_seqs: int,
    plan: Tensor,
    out: Tensor,
    **options: object,
) -> None: ...

# ---- experts (bind_cuda_moe.cc; where HAS_CUDA) ----

def cuda_moe_route(
    logits: Tensor,
    weights: Tensor,
    experts: Tensor,
    softcap: float,
    norm_order: float,
    scale: float,
    groups: int,
    top_groups: int,
    **launch: object,
) -> None: ...
def cuda_moe_plan_words(num_tokens: int, top_k: int, num_experts: int) -> int: ...
def cuda_moe_widen(x: Tensor, scales: Tensor, out: Tensor, **launch: object) -> None: ...
def cuda_moe_experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scales: Tensor | None,
    down_scales: Tensor | None,
    weights: Tensor,
    experts: Tensor,
    act: str,
    shared: Tensor | None,
    shared_gate: Tensor | None,
    plan: Tensor,
    buffer: Tensor,
    out: Tensor,
    **launch: object,
) -> None: ...
