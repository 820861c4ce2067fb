"""Decode speed on the CPU against transformers: one stream, and sixteen that arrive one by one.

`python -m bench cpu_decode --model models/SmolLM2-135M-Instruct --json out.json`. The bound of a
single stream is the time to read all weights once a token at this machine's read bandwidth.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.record import Record, write
from srt.llm import Engine

PROMPT_LEN, OUTPUT_LEN, STREAMS = 32, 96, 16
GAP_S = 0.05  # between arrivals


def read_gb_s() -> float:
    """Best of several sums over a gigabyte, all threads: the rate at which weights can be read."""
    data = torch.ones(2**28)
    rates = []
    for _ in range(8):
        start = time.perf_counter()
        data.sum()
        rates.append(data.numel() * 4 / (time.perf_counter() - start) / 1e9)
    return max(rates)


def prompts(count: int) -> list[list[int]]:
    """Random ids, the same in every run."""
    rng = random.Random(0)
    return [[rng.randint(100, 20000) for _ in range(PROMPT_LEN)] for _ in range(count)]


def median_s(run: Callable[[], None], repeat: int = 3) -> float:
    """Median seconds of `repeat` runs after one warm-up."""
    run()
    spans = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        spans.append(time.perf_counter() - start)
    return statistics.median(spans)


def srt_rates(model: str, dtype: str) -> tuple[float, float]:
    """Tokens per second: one stream decoding; all streams, from first arrival to last end."""
    with Engine(model_path=model, device="cpu", dtype=dtype, disable_radix_cache=True) as engine:

        def run(ids: list[int], outputs: int) -> None:
            params = {"temperature": 0, "max_new_tokens": outputs, "ignore_eos": True}
            engine.generate(input_ids=ids, sampling_params=params)

        def staggered() -> None:
            threads = []
            for ids in prompts(STREAMS):
                threads.append(threading.Thread(target=run, args=(ids, OUTPUT_LEN)))
                threads[-1].start()
                time.sleep(GAP_S)
            for thread in threads:
                thread.join()

        one = prompts(1)[0]
        decode_s = median_s(lambda: run(one, OUTPUT_LEN)) - median_s(lambda: run(one, 1))
        return (OUTPUT_LEN - 1) / decode_s, STREAMS * OUTPUT_LEN / median_s(staggered)


@torch.inference_mode()
def hf_rates(model: str, dtype: str) -> tuple[float, float]:
    """The same of transformers' `generate`; the streams are one static batch."""
    hf: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))

    def run(ids: list[list[int]], outputs: int) -> None:
        batch = torch.tensor(ids)
        hf.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=outputs,
            min_new_tokens=outputs,
            do_sample=False,
            pad_token_id=0,
        )

    decode_s = median_s(lambda: run(prompts(1), OUTPUT_LEN)) - median_s(lambda: run(prompts(1), 1))
    return (
        (OUTPUT_LEN - 1) / decode_s,
        STREAMS * OUTPUT_LEN / median_s(lambda: run(prompts(STREAMS), OUTPUT_LEN)),
    )


def main() -> None:
    """Measure both engines in turn."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--model", required=True)
    ap.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    config = transformers.AutoConfig.from_pretrained(args.model)
    hf: Any = transformers.AutoModelForCausalLM.from_config(config)
    params = sum(p.numel() for p in hf.parameters())
    del hf
    bandwidth = read_gb_s()
    records = [Record("read bandwidth", {"threads": torch.get_num_threads()}, bandwidth, "GB/s")]
    for dtype in args.dtypes:
        bound = bandwidth * 1e9 / (params * torch.finfo(getattr(torch, dtype)).bits / 8)
        ours, theirs = srt_rates(args.model, dtype), hf_rates(args.model, dtype)
        case = {"dtype": dtype, "in": PROMPT_LEN, "out": OUTPUT_LEN}
        for name, limit, at in (("1 stream", bound, 0), (f"{STREAMS} streams", None, 1)):
            for who, rates in (("srt", ours), ("transformers", theirs)):
                label = f"{dtype} {name} {who}"
                records.append(Record(label, case, rates[at], "tok/s", limit, True))
                print(records[-1].row(), flush=True)
        if args.json:
            write(records, args.json)


if __name__ == "__main__":
    main()
