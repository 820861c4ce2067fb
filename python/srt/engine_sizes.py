"""Sizes that the engine sets aside and defaults that it falls back to; no torch."""

from __future__ import annotations

CUDA_SLACK_BYTES = 384 << 20  # library workspaces, NCCL buffers, fragmentation
CUDA_GRAPH_BYTES = 3 << 20  # of driver memory for one captured graph's nodes
NCCL_CALL_BYTES = 88 << 10  # of each collective in a graph (two H200, NCCL 2.28: 8.5 MiB for 66)
DEFAULT_MAX_RUNNING = {"cuda": 2048, "cpu": 128}
PAGE_TABLE_CAP_BYTES = 256 << 20  # a default max_running never makes the page table larger
TOKENS_PER_ROW = 128  # a default max_running leaves each sequence at least so many pool tokens

# (first size of the range, spacing): waste by padding stays below an eighth, sizes stay few.
SPACINGS = ((8, 8), (256, 16), (512, 32), (1024, 64), (2048, 128))
# Tokens of a captured extend step without its padding: a step wastes at most a third of them.
EXTEND_BUCKET_TOKENS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


def graph_sizes(max_bs: int) -> list[int]:
    """The padded batch sizes of CUDA graphs, ascending: 1, 2, 4, 8, 16, 24, …, and `max_bs`."""
    sizes = [1, 2, 4]
    for (first, spacing), (end, _) in zip(SPACINGS, (*SPACINGS[1:], (max_bs + 1, 0)), strict=True):
        sizes += range(first, end, spacing)
    return sorted({size for size in sizes if size < max_bs} | {max_bs})
