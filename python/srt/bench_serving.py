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

from srt.benchmark.arguments import add_arguments, check_arguments, extra_body, rates_of
from srt.benchmark.backends import BACKENDS, Backend, Options, send
from srt.benchmark.datasets import (
    Dialogue,
    Request,
    SharedPrefix,
    as_text,
    random_dialogues,
    random_requests,
    shared_prefix_requests,
    sharegpt_dialogues,
    sharegpt_requests,
)
from srt.benchmark.http_client import HttpError, get_json
from srt.benchmark.load import Traffic, run_load
from srt.benchmark.plot import check_plots, plot_rates
from srt.benchmark.report import Run, figures, rows
from srt.errors import ConfigError, LoadError
from srt.hub import HubOptions, resolve_model
from srt.text.tokenizer import Tokenizer, load_tokenizer

DEFAULT_VOCAB_SIZE = 32000  # where neither server nor tokenizer tells


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, print, append to the result file. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="srt.bench_serving", description=__doc__, allow_abbrev=False
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        check_arguments(args)
        if args.plot_file:
            check_plots(args.plot_file, "--plot-file")
        return asyncio.run(_run(args))
    except (ConfigError, LoadError, HttpError, OSError) as error:
        sys.stderr.write(f"bench_serving: error: {error}\n")
        return 2


async def _run(args: argparse.Namespace) -> int:
    backend, rates = BACKENDS[args.backend], rates_of(args)
    base_url = args.base_url or f"http://{args.host}:{args.port or backend.port}"
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    extra = extra_body(args.extra_request_body)
    model = args.model or await _served_model(base_url, headers)
    tokenizer = _tokenizer(args, model)
    random.seed(args.seed)
    dataset = args.dataset_name or ("sharegpt" if args.dataset_path else "random")
    vocab_size = await _vocab_size(base_url, headers, tokenizer)
    dialogues = _dialogues(args, dataset, vocab_size, tokenizer)
    if backend.is_chat:
        dialogues = [[as_text(turn, tokenizer) for turn in turns] for turns in dialogues]
    options = Options(
        base_url=base_url,
        model=model,
        stream=not args.disable_stream,
        ignore_eos=not args.disable_ignore_eos,
        extra=extra,
        headers=headers,
    )
    await _warm_up(backend, [turns[0] for turns in dialogues[: args.warmup_requests]], options)
    records = []
    for rate in rates:
        traffic = Traffic(rate, args.burstiness, args.max_concurrency)
        load = await run_load(
            backend, dialogues, options, traffic, show_progress=not args.disable_tqdm
        )
        found = figures(Run(args.backend, dataset, traffic), load, tokenizer)
        print("\n".join(rows(found)))
        for error in sorted({outcome.error for outcome in load.outcomes if outcome.error})[:5]:
            sys.stderr.write(f"failed: {error}\n")
        records.append({**found, "model": model, **_sizes(args)})
        _append(_output_file(args, dataset), records[-1])
    if args.plot_file:
        plot_rates(records, args.plot_file)
        print(f"drawn in {args.plot_file}")
    return 1 if any(record["failed"] for record in records) else 0


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


def _dialogues(
    args: argparse.Namespace, dataset: str, vocab_size: int, tokenizer: Tokenizer | None
) -> list[Dialogue]:
    if dataset != "multi-turn":
        return [[one] for one in _requests(args, dataset, vocab_size, tokenizer)]
    if args.dataset_path is None:
        sizes = args.num_turns, args.random_input_len, args.random_output_len
        return random_dialogues(args.num_prompts, *sizes, tokenizer)
    assert tokenizer is not None
    sizes = args.num_prompts, args.num_turns, args.sharegpt_output_len
    return sharegpt_dialogues(args.dataset_path, *sizes, tokenizer)


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


async def _warm_up(backend: Backend, requests: Sequence[Request], options: Options) -> None:
    for request in requests:
        outcome = await send(backend, request, options)
        if outcome.error:
            raise HttpError(f"the warm-up request failed: {outcome.error}")


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
