"""Trial steps at the start: what memory steps need, and how fast prompts run."""

from __future__ import annotations

import gc
import logging

import torch

from srt.engine.decode_plan import DecodePlanner
from srt.engine.device_state import DeviceState, Limits
from srt.engine.memory import KvFormat, TrialSteps, allocate_pool, free_bytes
from srt.engine.step import profile_words, write_profile_message
from srt.engine.worker import Worker
from srt.engine_sizes import CUDA_GRAPH_BYTES, EXTEND_BUCKET_TOKENS, NCCL_CALL_BYTES
from srt.footprint import collectives
from srt.model_config import ModelConfig
from srt.models.decoder import Decoder
from srt.parallel import TensorParallel

log = logging.getLogger(__name__)

MAX_WARM_UP_TOKENS = 2048
NUM_TRIAL_GRAPHS = 8


def measure_steps(
    model: Decoder,
    limits: Limits,
    fmt: KvFormat,
    device: torch.device,
    sizes: list[int],
    planner: DecodePlanner | None,
    tp: TensorParallel,
) -> TrialSteps:
    """Runs the largest steps over a scratch pool and takes the peaks (CPU: nothing is measured).

    The largest step runs first, and torch's allocator keeps what it took: every later step finds
    its tensors' room there, whatever its sizes, as theirs are no larger. The state that outlives
    steps (buffers, page table) is counted with the activations. A few common prompt lengths run
    too, so that the first requests find their kernels loaded.
    """
    if device.type == "cpu":
        return TrialSteps(0, 0, 0.0)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    kv = allocate_pool(model.kv_spec, 2, limits.page_size, fmt, device)
    state = DeviceState.allocate(limits, kv, device)
    num_seqs, num_tokens = limits.max_running, limits.max_step_tokens
    worker = Worker(model, state, limits, profile_words(num_seqs, num_tokens), planner)
    worker.launch(write_profile_message(worker.message.numpy(), num_seqs, num_tokens))
    worker.result()
    graphs = 0
    if sizes:
        between = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        shape = write_profile_message(worker.message.numpy(), sizes[-1], sizes[-1], decode=True)
        worker.launch(shape)
        worker.result()
        graphs = torch.cuda.max_memory_allocated(device) - between
        each = CUDA_GRAPH_BYTES
        if tp.size > 1:
            each = max(each, measure_graph(worker, sizes, device))
        log.debug("%.1f MiB of the driver's memory for a graph", each / (1 << 20))
        graphs += (len(sizes) + len(EXTEND_BUCKET_TOKENS)) * each
        graphs += nccl_bytes_of_large_graphs(tp, sizes, model.config)
    rate = warm_up_prompts(worker)
    worker.close()
    del worker, state, kv
    gc.collect()
    return TrialSteps(torch.cuda.memory_reserved(device) - before, graphs, rate)


def measure_graph(worker: Worker, sizes: list[int], device: torch.device) -> int:
    """Bytes that the driver and NCCL keep for one captured step, beside what torch allocates.

    Every size runs once before: NCCL connects its ranks anew for some sizes of message, which takes
    memory too. The page table must be zero.
    """
    runner = worker.runner
    runner.write_empty_message()
    with torch.inference_mode():
        for size in reversed(sizes):
            runner.run_decode(size)
    torch.cuda.synchronize(device)
    trial = sizes[:NUM_TRIAL_GRAPHS]  # the smallest: the number of kernels decides
    before = free_bytes(device) + torch.cuda.memory_reserved(device)
    runner.capture(trial, [])
    torch.cuda.synchronize(device)
    taken = before - free_bytes(device) - torch.cuda.memory_reserved(device)
    return max(0, taken) // len(trial)


def nccl_bytes_of_large_graphs(tp: TensorParallel, sizes: list[int], config: ModelConfig) -> int:
    """What large graphs take beyond the small ones of the trial, since NCCL sums their messages."""
    if tp.peers is None:
        return 0
    row_bytes = 2 * config.hidden_size
    num_large = sum(size * row_bytes > tp.peers.max_bytes for size in sizes)
    return num_large * collectives(config, tp.size) * NCCL_CALL_BYTES


def warm_up_prompts(worker: Worker) -> float:
    """Runs prompts of 32, 64, … tokens; returns the last one's tokens a second, run once more.

    Libraries choose and load kernels by the number of tokens: about 60 ms at first use. The page
    table must be zero (see `write_profile_message`).
    """
    limits = worker.limits
    most = min(MAX_WARM_UP_TOKENS, limits.max_step_tokens, limits.max_seq_len)
    sizes = [size for size in (32 << i for i in range(16)) if size <= most]
    for size in (*sizes, *sizes[-1:]):
        worker.launch(write_profile_message(worker.message.numpy(), 1, size))
        worker.result()
    return sizes[-1] / worker.device_s if sizes and worker.device_s else 0.0
