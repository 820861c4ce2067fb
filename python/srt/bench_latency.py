"""`python -m srt.bench_latency`: one static batch, step by step, without a server.

Takes all flags of the server. Combinations of the given sizes are run one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from srt.benchmark.latency import Row, fits, lines, make_row, sweep, time_batch
from srt.benchmark.plot import check_plots, plot_query
from srt.channel import EngineReady, GenerateRequest, SeqLogprobs
from srt.config import Settings, add_settings, settings_from
from srt.engine.client import EngineClient
from srt.errors import ConfigError, EngineDead, InternalServerError, LoadError
from srt.hub import HubOptions, resolve_model
from srt.text.tokenizer import Tokenizer, load_tokenizer
from srt.types import FinishReason, SamplingParams

CORRECTNESS_PROMPTS = (
    "The capital of France is",
    "The capital of the United Kingdom is",
    "Today is a sunny day and I like",
)
CORRECTNESS_TOKENS = 16
CORRECTNESS_TOP = 5
DEFAULT_SQL = (
    "select run_name || ', input ' || input_len as run, batch_size, median_decode_throughput "
    "from results"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, print, append to the result file. Returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.graph_filename:
            check_plots(args.graph_filename, "--graph-filename")
            if not args.result_filename:
                raise ConfigError("--graph-filename needs --result-filename, whose rows it shows")
            if args.model_path is None:
                return _draw(args)
        settings = settings_from(args, os.environ)
        return _check(settings, args) if args.correctness_test else _measure(settings, args)
    except (ConfigError, LoadError) as error:
        sys.stderr.write(f"bench_latency: error: {error}\n")
    except (EngineDead, InternalServerError) as error:
        sys.stderr.write(f"bench_latency: the engine failed: {error.message}\n")
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="srt.bench_latency", description=__doc__, allow_abbrev=False
    )
    group = parser.add_argument_group("benchmark")
    add = group.add_argument
    add("--run-name", default="before")
    add("--batch-size", "--batch", type=int, nargs="+", default=[1])
    add("--input-len", "--input", type=int, nargs="+", default=[1024])
    add("--output-len", "--output", type=int, nargs="+", default=[16])
    add("--result-filename", "--result-file", default="", help="JSON lines are appended")
    add(
        "--graph-filename", help="a PNG of the rows in --result-filename; without a model only that"
    )
    add("--graph-sql", default=DEFAULT_SQL,
        help="what it shows: a query over `results` that gives series, x and y")  # fmt: skip
    add("--correctness-test", "--correct", action="store_true",
        help="compare whole prefills with prefills split after --cut-len tokens")  # fmt: skip
    add("--cut-len", type=int, default=4)
    add_settings(parser)
    return parser


def _measure(settings: Settings, args: argparse.Namespace) -> int:
    """All prompts are the same, so prefixes must not be shared."""
    sizes = sweep(args.batch_size, args.input_len, args.output_len)
    for size in sizes:
        if min(size) < 1:
            raise ConfigError(f"--batch-size, --input-len, --output-len must be positive: {size}")
    largest = max(batch for batch, _, _ in sizes)
    client, ready = _start(
        replace(
            settings,
            disable_radix_cache=True,
            max_running_requests=settings.max_running_requests or largest,
        )
    )
    rows: list[Row] = []
    try:
        for batch_size, input_len, output_len in sizes:
            name = f"batch {batch_size}, input {input_len}, output {output_len}"
            if not fits(batch_size, input_len, output_len, ready):
                print(f"skipped {name}: {_limits(ready)}")
                continue
            time_batch(client, batch_size, input_len, min(output_len, 4))  # warm-up
            timing = time_batch(client, batch_size, input_len, output_len)
            rows.append(make_row(args.run_name, batch_size, input_len, output_len, timing))
            print(f"{name}\n" + "\n".join(lines(rows[-1], timing)))
    finally:
        client.close(drain=False)
    if args.result_filename:
        with Path(args.result_filename).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row.record()) + "\n" for row in rows)
    return _draw(args) if args.graph_filename else 0


def _draw(args: argparse.Namespace) -> int:
    """A chart of all rows of the result file, earlier runs' too."""
    try:
        lines_of_file = Path(args.result_filename).read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines_of_file]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--result-filename {args.result_filename}: {error}") from error
    plot_query(found, args.graph_sql, args.graph_filename)
    print(f"drawn in {args.graph_filename}")
    return 0


def _start(settings: Settings) -> tuple[EngineClient, EngineReady]:
    client = EngineClient(settings)
    return client, client.wait_ready()[0]


def _limits(ready: EngineReady) -> str:
    return (
        f"a sequence holds {ready.max_seq_len} tokens, the KV pool {ready.max_total_tokens}, "
        f"a step {ready.max_running} sequences"
    )


def _check(settings: Settings, args: argparse.Namespace) -> int:
    """Each prompt whole, then again on top of its cached first tokens; both must say the same."""
    path = resolve_model(settings.tokenizer_source, HubOptions(), with_weights=False)
    tokenizer = load_tokenizer(path)
    client, ready = _start(replace(settings, page_size=1))  # prefixes are shared by whole pages
    tokenizer.cover(ready.vocab_size)
    differing = 0
    try:
        for text in CORRECTNESS_PROMPTS:
            ids = tokenizer.encode(text)
            client.call("flush_cache")
            whole, _ = _generate(client, ids, CORRECTNESS_TOKENS, tokenizer)
            client.call("flush_cache")
            _generate(client, ids[: args.cut_len], 1, tokenizer)
            split, num_cached = _generate(client, ids, CORRECTNESS_TOKENS, tokenizer)
            differing += whole != split
            print(f"prompt: {text!r}, {len(ids)} tokens, {num_cached} of them cached")
            print(
                f"whole:  {whole!r}\nsplit:  {split!r}\n{'same' if whole == split else 'DIFFERENT'}"
            )
    finally:
        client.close(drain=False)
    return 1 if differing else 0


class _Event(NamedTuple):
    """What a sink is told."""

    seq_id: int
    token: int
    finish: int
    cached_tokens: int
    logprobs: SeqLogprobs | None
    error: str | None
    jumped: bool


def _generate(
    client: EngineClient, ids: list[int], num_tokens: int, tokenizer: Tokenizer
) -> tuple[str, int]:
    """Greedy text and the number of cached prompt tokens; prints the first token's logprobs."""
    events: SimpleQueue[_Event] = SimpleQueue()
    request = GenerateRequest(
        seq_id=0,
        input_ids=array("i", ids).tobytes(),
        sampling=SamplingParams(max_new_tokens=num_tokens, temperature=0.0, ignore_eos=True),
        return_logprob=True,
        top_logprobs=CORRECTNESS_TOP,
    )
    client.submit([(request, lambda *event: events.put(_Event(*event)))])
    tokens: list[int] = []
    num_cached = 0
    while True:
        event = events.get()
        if event.error is not None:
            raise InternalServerError(event.error)
        if not tokens and event.logprobs is not None:
            told = (f"{tokenizer.token_text(i)!r} {x:.4f}" for i, x in event.logprobs.top)
            print("prefill logprobs: " + ", ".join(told))
        num_cached = max(num_cached, event.cached_tokens)
        if event.token >= 0:
            tokens.append(event.token)
        if event.finish != FinishReason.NONE:
            return tokenizer.decode(tokens), num_cached


if __name__ == "__main__":
    sys.exit(main())
