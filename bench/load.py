"""Loading weights from disk: a 2 GiB checkpoint against the disk's own rate.

`python -m bench load [--folder DIR] [--json out.json]`. Before every pass the files are dropped
from the page cache. The disk's rate is the better median of sequential O_DIRECT reads, by one
reader and by several; loading is `load_weights` into a model on the CPU, the copy into parameters
included.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.record import Record, write
from srt.families import load_model_config
from srt.models.registry import build_model
from srt.parallel import TensorParallel
from srt.weights.loader import load_weights

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 14,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
SHARDS, ROUNDS, BLOCK = 2, 5, 8 << 20


def make_checkpoint(folder: Path) -> list[Path]:
    """A Llama of about 2 GiB in two files."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    hidden, inter = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    assert isinstance(hidden, int)
    assert isinstance(inter, int)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (32000, hidden),
        "lm_head.weight": (32000, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(int(str(CONFIG["num_hidden_layers"]))):
        layer = f"model.layers.{i}"
        for name, rows in (("q", hidden), ("k", hidden // 2), ("v", hidden // 2), ("o", hidden)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, hidden)
        for name in ("gate", "up"):
            shapes[f"{layer}.mlp.{name}_proj.weight"] = (inter, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inter)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (hidden,)
    names = list(shapes)
    files = []
    for shard in range(SHARDS):
        own = names[len(names) * shard // SHARDS : len(names) * (shard + 1) // SHARDS]
        file = folder / f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        save_file({n: torch.randn(shapes[n]).bfloat16() for n in own}, file)
        files.append(file)
    os.sync()
    return files


def drop(files: list[Path]) -> None:
    """Forgets the files' pages."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read_direct(file: Path, first: int, last: int) -> None:
    """Bytes [first, last) past the page cache, in blocks."""
    fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, BLOCK) as buffer:  # page-aligned, as O_DIRECT wants
        for offset in range(first, last, BLOCK):
            os.preadv(fd, [buffer], offset)
    os.close(fd)


def read_all(files: list[Path], readers: int) -> None:
    """All files, their blocks shared out over threads."""
    pieces = []
    for file in files:
        size = file.stat().st_size
        step = -(-size // readers // BLOCK) * BLOCK
        pieces += [(file, at, min(size, at + step)) for at in range(0, size, step)]
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(lambda piece: read_direct(*piece), pieces))


def rates(files: list[Path], runs: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """GB/s of each round; the runs take turns, so that what else uses the disk meets all alike."""
    num_bytes = sum(file.stat().st_size for file in files)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            drop(files)
            begin = time.perf_counter()
            run()
            samples[name].append(num_bytes / (time.perf_counter() - begin) / 1e9)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a new one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        folder = Path(made)
        files = make_checkpoint(folder)
        model = build_model(
            load_model_config(folder), TensorParallel(), torch.device("cpu"), torch.bfloat16
        )
        for param in model.parameters():
            param.data.zero_()  # its memory exists before the clock runs

        def load() -> None:
            load_weights(model, model.weight_table(), folder, TensorParallel())

        direct = {f"O_DIRECT, {n} readers": partial(read_all, files, n) for n in (1, 4)}
        samples = rates(files, {**direct, "load_weights": load})
        best = max(statistics.median(samples[name]) for name in direct)
        params = {"bytes": sum(file.stat().st_size for file in files), "files": SHARDS}
        rows = []
        for name, values in samples.items():
            limit = best if name == "load_weights" else None
            value = statistics.median(values)
            rows.append(Record(name, params, value, "GB/s", limit, True, samples=values))
    for row in rows:
        print(row.row())
    if args.json is not None:
        write(rows, args.json)


if __name__ == "__main__":
    main()
