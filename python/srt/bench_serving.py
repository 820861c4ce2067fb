"""`python -m srt.bench_serving`: load on a running server, ours or another, over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srt.benchmark.backends import BACKENDS, Backend, Options, send
from srt.benchmark.datasets import (
    Request,
    SharedPrefix,
    random_requests,
    shared_prefix_requests,
    sharegpt_requests,
)
from srt.benchmark.http_client import HttpError, get_json
from srt.benchmark.load import run_load
from srt.benchmark.report import Run, figures, rows
from srt.errors import ConfigError, LoadError
from srt.hub import HubOptions, resolve_model
from srt.text.tokenizer import Tokenizer, load_tokenizer

DEFAULT_VOCAB_SIZE = 32000  # where neither server nor tokenizer tells


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, print, append to the result file. Returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return asyncio.run(_run(args))
    except (ConfigError, LoadError, HttpError, OSError) as error:
        sys.stderr.write(f"bench_serving: error: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="srt.bench_serving", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--backend", choices=sorted(BACKENDS), default="srt", help="kind of server")
    add("--base-url", help="URL of the server, instead of host and port")
    add("--host", default="127.0.0.1")
    add("--port", type=int, help="by default the backend's own")
    add("--dataset-name", choices=("random", "sharegpt", "generated-shared-prefix"),
        help="by default sharegpt where --dataset-path is given, else random")  # fmt: skip
    add("--dataset-path", help="a ShareGPT JSON file")
    add("--model", help="by default what /v1/models names")
    add("--tokenizer", help="folder, GGUF file or hub id; by default the model")
    add("--num-prompts", "--num-prompt", type=int, default=1000)
    add("--sharegpt-output-len", type=int, help="instead of the length of the recorded answer")
    add("--random-input-len", "--random-input", type=int, default=1024)
    add("--random-output-len", "--random-output", type=int, default=1024)
    add("--random-range-ratio", type=float, default=0.0, help="shortest length / longest")
    add("--gen-num-groups", type=int, default=64)
    add("--gen-prompts-per-group", type=int, default=16)
    add("--gen-system-prompt-len", type=int, default=2048)
    add("--gen-question-len", type=int, default=128)
    add("--gen-output-len", type=int, default=256)
    add("--request-rate", type=float, default=float("inf"), help="Poisson arrivals per second")
    add("--max-concurrency", type=int, help="requests that may run at once")
    add("--multi", action="store_true", help="one run for each rate of --request-rate-range")
    add("--request-rate-range", default="2,34,2", help="start,stop,step; or a list of rates")
    add("--warmup-requests", type=int, default=1)
    add("--seed", type=int, default=1)
    add("--output-file", help="JSON lines are appended")
    add("--disable-tqdm", action="store_true", help="no progress bar")
    add("--disable-stream", action="store_true", help="wait for whole answers")
    add("--disable-ignore-eos", action="store_true", help="let answers end by themselves")
    add("--extra-request-body", default="{}", help="a JSON object, added to every request")
    return parser


async def _run(args: argparse.Namespace) -> int:
    backend = BACKENDS[args.backend]
    base_url = args.base_url or f"http://{args.host}:{args.port or backend.port}"
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    model = args.model or await _served_model(base_url, headers)
    tokenizer = _tokenizer(args, model)
    random.seed(args.seed)
    dataset = args.dataset_name or ("sharegpt" if args.dataset_path else "random")
    vocab_size = await _vocab_size(base_url, headers, tokenizer)
    requests = _requests(args, dataset, vocab_size, tokenizer)
    options = Options(
        base_url=base_url,
        model=model,
        stream=not args.disable_stream,
        ignore_eos=not args.disable_ignore_eos,
        extra=_extra_body(args.extra_request_body),
        headers=headers,
    )
    await _warm_up(backend, requests[: args.warmup_requests], options)
    failed = 0
    for rate in _rates(args):
        outcomes, duration_s = await run_load(
            backend, requests, options, request_rate=rate, max_concurrency=args.max_concurrency,
            show_progress=not args.disable_tqdm,
        )  # fmt: skip
        run = Run(args.backend, dataset, rate, args.max_concurrency)
        found = figures(run, outcomes, duration_s, tokenizer)
        print("\n".join(rows(found)))
        errors = sorted({outcome.error for outcome in outcomes if outcome.error})
        for error in errors[:5]:
            sys.stderr.write(f"failed: {error}\n")
        failed += found["failed"]
        _append(_output_file(args, dataset), {**found, "model": model, **_sizes(args)})
    return 1 if failed else 0


async def _served_model(base_url: str, headers: dict[str, str]) -> str:
    listed = await get_json(f"{base_url}/v1/models", headers)
    return str(listed["data"][0]["id"])


def _tokenizer(args: argparse.Namespace, model: str) -> Tokenizer | None:
    """Needed for ShareGPT; elsewhere used if it is at hand, without going to a hub for it."""
    if args.tokenizer is None and args.dataset_path is None and not Path(model).exists():
        return None
    source = args.tokenizer or model
    return load_tokenizer(resolve_model(source, HubOptions(), with_weights=False))


async def _vocab_size(base_url: str, headers: dict[str, str], tokenizer: Tokenizer | None) -> int:
    try:
        info = await get_json(f"{base_url}/get_server_info", headers)
        return int(info["vocab_size"])
    except (HttpError, KeyError, ValueError):
        return len(tokenizer.pieces) if tokenizer is not None else DEFAULT_VOCAB_SIZE


def _requests(
    args: argparse.Namespace, dataset: str, vocab_size: int, tokenizer: Tokenizer | None
) -> list[Request]:
    if dataset == "random":
        return random_requests(
            args.num_prompts,
            args.random_input_len,
            args.random_output_len,
            args.random_range_ratio,
            vocab_size,
        )
    if dataset == "generated-shared-prefix":
        sizes = SharedPrefix(
            args.gen_num_groups,
            args.gen_prompts_per_group,
            args.gen_system_prompt_len,
            args.gen_question_len,
            args.gen_output_len,
        )
        return shared_prefix_requests(sizes, vocab_size)
    if args.dataset_path is None or tokenizer is None:
        raise ConfigError("--dataset-name sharegpt needs --dataset-path, and a tokenizer")
    return sharegpt_requests(
        args.dataset_path, args.num_prompts, args.sharegpt_output_len, tokenizer
    )


def _extra_body(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--extra-request-body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("--extra-request-body must be a JSON object")
    return value


async def _warm_up(backend: Backend, requests: Sequence[Request], options: Options) -> None:
    for request in requests:
        outcome = await send(backend, request, options)
        if outcome.error:
            raise HttpError(f"the warm-up request failed: {outcome.error}")


def _rates(args: argparse.Namespace) -> list[float]:
    if not args.multi:
        return [args.request_rate]
    numbers = [float(word) for word in args.request_rate_range.split(",")]
    if len(numbers) != 3:
        return numbers
    start, stop, step = numbers
    count = int((stop - start - 1e-9) // step) + 1
    return [start + i * step for i in range(count)]


def _output_file(args: argparse.Namespace, dataset: str) -> Path:
    if args.output_file:
        return Path(args.output_file)
    name = f"{args.backend}_{time.strftime('%m%d')}_{args.num_prompts}"
    if dataset == "random":
        return Path(f"{name}_{args.random_input_len}_{args.random_output_len}.jsonl")
    return Path(f"{name}_{dataset}.jsonl")


def _sizes(args: argparse.Namespace) -> dict[str, Any]:
    names = ("num_prompts", "random_input_len", "random_output_len", "random_range_ratio", "seed")
    return {name: getattr(args, name) for name in names}


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
