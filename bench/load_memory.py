"""Peak device memory while a 16-bit checkpoint loads into fp8: near the fp8 size is the aim.

`python -m bench load_memory --shape L1B --json out.json` writes random weights of the shape to a
temporary folder and loads them twice, wide and quantized.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.record import Record, write
from bench.shapes import SHAPES, write_shape
from srt.families import load_model_config
from srt.models.registry import build_model
from srt.parallel import TensorParallel
from srt.weights.loader import load_weights

GIB = 1 << 30


def write_checkpoint(name: str, folder: Path) -> Path:
    """A Llama-named checkpoint of random bfloat16 weights."""
    path = write_shape(name, folder)
    shape = SHAPES[name]
    hidden, inter, dim = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q, kv = shape["num_attention_heads"] * dim, shape["num_key_value_heads"] * dim
    sizes = {"model.embed_tokens": (shape["vocab_size"], hidden), "model.norm": (hidden,)}
    for i in range(shape["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        sizes |= {
            f"{layer}.input_layernorm": (hidden,),
            f"{layer}.post_attention_layernorm": (hidden,),
            f"{layer}.self_attn.q_proj": (q, hidden),
            f"{layer}.self_attn.k_proj": (kv, hidden),
            f"{layer}.self_attn.v_proj": (kv, hidden),
            f"{layer}.self_attn.o_proj": (hidden, q),
            f"{layer}.mlp.gate_proj": (inter, hidden),
            f"{layer}.mlp.up_proj": (inter, hidden),
            f"{layer}.mlp.down_proj": (hidden, inter),
        }
    if not shape["tie_word_embeddings"]:
        sizes["lm_head"] = sizes["model.embed_tokens"]
    weights = {
        f"{key}.weight": torch.randn(size, dtype=torch.bfloat16, device="cuda").cpu()
        for key, size in sizes.items()
    }
    save_file(weights, path / "model.safetensors")
    return path


def load(path: Path, quantization: str | None) -> Record:
    """Loads the checkpoint; the peak of what was allocated while it did."""
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    config = load_model_config(path, quantization=quantization)
    start = time.perf_counter()
    model = build_model(config, TensorParallel(), device, torch.bfloat16)
    load_weights(model, model.weight_table(), path, TensorParallel())
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    params = {"weights_gib": size / GIB, "seconds": seconds}
    name = f"{path.name} {quantization or 'bf16'} peak while loading"
    return Record(name, params, peak / GIB, "GiB", size / GIB)


def main() -> None:
    """Measure one shape."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--shape", choices=["L1B", "L8B"], default="L1B")
    ap.add_argument("--commit", help="commit to record where git is not at hand")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(args.shape, Path(folder))
        out = [load(path, None), load(path, "fp8")]
    for record in out:
        print(record.row(), record.params)
    if args.json:
        write(out, args.json, commit=args.commit)


if __name__ == "__main__":
    main()
