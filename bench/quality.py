"""What fp8 costs in quality: perplexity and logit error on a fixed text, against bfloat16.

`python -m bench quality --model models/SmolLM2-135M-Instruct --json out.json`, on a CPU or a GPU.
On a CPU the rows that go into fp8 products are quantized and widened again, as a GPU would
quantize them: "fp8" as `--quantization fp8` runs up to 128 tokens of large models, with a scale for
each 128 inputs of down where these are whole, and for each head of 128 before o; "token" with one
scale per row in all products, as it runs more tokens, and as checkpoints that say so run.
bench/data/text.txt is a snapshot of two pages of docs/.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.record import Record, write
from srt.batch import ForwardBatch
from srt.engine.memory import KvFormat, allocate_pool
from srt.families import load_model_config
from srt.layers.linear import QkvLinear, RowParallel
from srt.layers.mlp import GatedMlp
from srt.models.decoder import Decoder
from srt.models.llama import LlamaAttention
from srt.models.registry import build_model
from srt.ops.fp8 import GROUP, dequantize, quantize_groups, quantize_rows
from srt.parallel import TensorParallel
from srt.text.tokenizer import load_tokenizer
from srt.weights.loader import load_weights

TEXT = Path(__file__).parent / "data" / "text.txt"
PAGE_SIZE = 16
CASES = [  # weights, KV
    ("wide", "auto"),
    ("fp8", "auto"),
    ("token", "auto"),
    ("wide", "fp8_e5m2"),
    ("wide", "fp8_e4m3"),
    ("fp8", "fp8_e5m2"),
    ("fp8", "fp8_e4m3"),
]


@dataclass(frozen=True, slots=True)
class Compared:
    """Means over all tokens. error: ‖logits - ref‖ / ‖ref‖ of a token's logits less their mean.

    kl: of the reference's distribution to this one, nats.  same: share of equal best tokens.
    """

    perplexity: float
    error: float
    kl: float
    same: float


def load_model(source: Path, weights: str, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The model; where its weights are fp8, with activations quantized as on a GPU."""
    quantization = None if weights == "wide" else "fp8"
    config = load_model_config(source, quantization=quantization)
    tp = TensorParallel()
    model = build_model(config, tp, device, dtype)
    load_weights(model, model.weight_table(), source, tp)
    if weights != "wide" and device.type == "cpu":
        grouped = set(_products_of_groups(model)) if weights == "fp8" else set()
        for module in model.modules():
            if isinstance(module, QkvLinear | RowParallel | GatedMlp):
                in_groups = module in grouped
                quantize = quantize_groups if in_groups else quantize_rows
                module.register_forward_pre_hook(partial(_quantized_and_widened, quantize))
    return model


def _products_of_groups(model: nn.Module) -> Iterator[nn.Module]:
    """Those whose rows come with a scale for each 128 values."""
    for module in model.modules():
        if isinstance(module, GatedMlp) and module.down.weight.shape[1] % GROUP == 0:
            yield module.down
        if isinstance(module, LlamaAttention) and module.head_dim == GROUP:
            yield module.o


def _quantized_and_widened(
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]], _: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    x = args[0]
    return (dequantize(*quantize(x), x.dtype), *args[1:])


@torch.inference_mode()
def logits_of(model: Decoder, tokens: list[int], kv: str, dtype: torch.dtype) -> Tensor:
    """One prompt from an empty pool: float32 [len(tokens), vocab]."""
    device = next(model.parameters()).device
    num_pages = -(-len(tokens) // PAGE_SIZE) + 1
    fmt = KvFormat.of(kv, dtype)
    pool = allocate_pool(model.kv_spec, num_pages, PAGE_SIZE, fmt, device)

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    count = len(tokens)
    positions = torch.arange(count, dtype=torch.int32, device=device)
    batch = ForwardBatch(
        num_tokens=count,
        num_seqs=1,
        num_decode=0,
        token_ids=ints(*tokens),
        positions=positions,
        slots=positions + PAGE_SIZE,
        rows=ints(0),
        q_indptr=ints(0, count),
        seq_lens=ints(count),
        page_table=torch.arange(1, num_pages, dtype=torch.int32, device=device).unsqueeze(0),
        logit_idx=positions,
        max_q_len=count,
        max_seq_len=count,
        kv=pool,
    )
    return model.compute_logits(model(batch)).float()


def compare(logits: list[Tensor], ref: list[Tensor], windows: list[list[int]]) -> Compared:
    """Of the windows' logits, against the reference's."""
    loss, error, kl, same = [], [], [], []
    for ours, theirs, tokens in zip(logits, ref, windows, strict=True):
        log_p, log_q = theirs.log_softmax(-1), ours.log_softmax(-1)
        targets = torch.tensor(tokens[1:], device=ours.device).unsqueeze(1)
        loss.append(-log_q[:-1].gather(1, targets).squeeze(1))
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
        same.append((ours.argmax(-1) == theirs.argmax(-1)).float())
        a, b = ours - ours.mean(-1, keepdim=True), theirs - theirs.mean(-1, keepdim=True)
        error.append((a - b).norm(dim=-1) / b.norm(dim=-1))
    return Compared(
        perplexity=math.exp(float(torch.cat(loss).mean())),
        error=float(torch.cat(error).mean()),
        kl=float(torch.cat(kl).mean()),
        same=float(torch.cat(same).mean()),
    )


def records(
    source: Path, windows: list[list[int]], dtype: torch.dtype, device: torch.device
) -> Iterator[Record]:
    """Every case against the first."""
    ref: list[Tensor] = []
    for weights, kv in CASES:
        model = load_model(source, weights, dtype, device)
        logits = [logits_of(model, window, kv, dtype) for window in windows]
        ref = ref or logits
        result = compare(logits, ref, windows)
        params = {
            "weights": weights,
            "kv": kv,
            "tokens": sum(map(len, windows)),
            "logit_error": result.error,
            "kl": result.kl,
            "same_best_token": result.same,
        }
        print(
            f"weights {weights:5s} kv {kv:9s} perplexity {result.perplexity:8.4f}  logit error "
            f"{result.error:.4f}  KL {result.kl:.5f}  same token {result.same:.4f}",
            flush=True,
        )
        name = f"{source.name} weights {weights} kv {kv} perplexity"
        yield Record(name, params, result.perplexity, "")


def main() -> None:
    """Measure one model."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--model", type=Path, required=True)
    ap.add_argument("--windows", type=int, default=4, help="prompts that the text is cut into")
    ap.add_argument("--window", type=int, default=1024, help="tokens of one")
    ap.add_argument("--random", action="store_true", help="random tokens, for random weights")
    ap.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    ap.add_argument("--commit", help="commit to record where git is not at hand")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    total = args.windows * args.window
    if args.random:
        vocab = load_model_config(args.model).vocab_size
        generator = torch.Generator().manual_seed(0)
        tokens: list[int] = torch.randint(3, vocab, (total,), generator=generator).tolist()
    else:
        tokens = load_tokenizer(args.model).encode(TEXT.read_text())[:total]
    windows = [tokens[i : i + args.window] for i in range(0, len(tokens), args.window)]
    out: list[Record] = []
    for record in records(args.model, windows, torch.bfloat16, torch.device(args.device)):
        out.append(record)
        if args.json:
            write(out, args.json, commit=args.commit)


if __name__ == "__main__":
    main()
