"""The CUDA sampler alone: microseconds of a step's rows, by kind of row and how much is known.

`python -m bench sampler --json out.json`; graph replays over logits that miss L2, medians. A step
of a captured graph does not know its rows' kinds ("unknown").
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from bench._replay import replay_us
from bench.record import Record, write
from bench.roofline import H100
from srt import ops
from srt.batch import StepBuffers
from srt.ops import message as msg

PAGE_SIZE, HISTORY = 64, 1024
COLD_BYTES, LAUNCHES = 150e6, 20
SAMPLING_WORDS = 16
KINDS: dict[str, tuple[int, int, float, float]] = {  # flags, top_k, top_p, frequency penalty
    "greedy": (msg.FLAG_GREEDY, -1, 1.0, 0.0),
    "temperature": (0, -1, 1.0, 0.0),
    "top-p 0.9": (msg.FLAG_FILTERED, -1, 0.9, 0.0),
    "top-k 50, top-p 0.9": (msg.FLAG_FILTERED, 50, 0.9, 0.0),
    "greedy, penalties": (msg.FLAG_GREEDY | msg.FLAG_PENALTIES, -1, 1.0, 0.5),
}


def sampling_records(rows: int, kind: str) -> torch.Tensor:
    """int32 [rows, 16], see docs/contracts.md."""
    flags, top_k, top_p, penalty = KINDS[kind]
    words = torch.zeros(rows, SAMPLING_WORDS, dtype=torch.int32)
    floats = words.view(torch.float32)
    words[:, 0] = torch.arange(rows)
    words[:, 1] = flags
    floats[:, 2], floats[:, 3] = 0.8, top_p
    words[:, 4] = top_k
    floats[:, 6], floats[:, 8] = penalty, 1.0
    words[:, 9] = torch.arange(rows)
    words[:, 11] = 77
    return words


def measure(rows: int, vocab: int, kind: str, *, known: bool) -> Record:
    """Microseconds of a launch."""
    device = torch.device("cuda")
    copies = max(1, min(LAUNCHES, int(COLD_BYTES / (rows * vocab * 2))))
    logits = torch.randn(copies, rows, vocab, device=device, dtype=torch.bfloat16) * 3
    buffers = StepBuffers.allocate(rows, rows, rows, device)
    buffers.sampling[:rows].copy_(sampling_records(rows, kind))
    buffers.sample_rows[:rows].copy_(torch.arange(rows))
    buffers.rows[:rows].copy_(torch.arange(rows))
    buffers.seq_lens[:rows].fill_(HISTORY)
    buffers.prompt_lens[:rows].fill_(HISTORY // 2)
    pages = rows * HISTORY // PAGE_SIZE
    table = (torch.arange(pages, dtype=torch.int32) + 1).view(rows, -1).to(device)
    slots = torch.randint(0, vocab, ((pages + 1) * PAGE_SIZE,), dtype=torch.int32, device=device)
    last = torch.zeros(rows + 1, dtype=torch.int32, device=device)
    message = torch.zeros(1 << 12, dtype=torch.int32, device=device)
    flags = KINDS[kind][0] if known else -1

    def launch(i: int) -> None:
        ops.sample(
            logits[i % copies],
            message,
            buffers,
            table,
            slots,
            last,
            page_size=PAGE_SIZE,
            flags=flags,
            bitmask=None,
        )

    samples = replay_us(launch, LAUNCHES)
    name = f"{rows} x {vocab} {kind}{'' if known else ', unknown'}"
    limit = rows * vocab * 2 / (H100.read_gb_s * 1e3)
    return Record(name, {}, statistics.median(samples), "us", limit, samples=samples)


def main() -> None:
    """Time all kinds of rows."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256, 512])
    ap.add_argument("--vocab", type=int, nargs="+", default=[128256])
    ap.add_argument("--commit", help="commit to record where git is not at hand")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    records = []
    for vocab in args.vocab:
        for rows in args.rows:
            for kind in KINDS:
                for known in (True, False):
                    records.append(measure(rows, vocab, kind, known=known))
                    print(records[-1].row(), flush=True)
    if args.json:
        write(records, args.json, commit=args.commit)


if __name__ == "__main__":
    main()
