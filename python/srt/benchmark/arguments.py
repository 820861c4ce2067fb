"""The command line of `python -m srt.bench_serving`, checked."""

from __future__ import annotations

import argparse
import json
from typing import Any

from srt.benchmark.backends import BACKENDS
from srt.errors import ConfigError

DATASETS = ("random", "sharegpt", "generated-shared-prefix", "multi-turn")
_AT_LEAST = {
    "num_prompts": 1,
    "num_turns": 1,
    "sharegpt_output_len": 1,
    "random_input_len": 1,
    "random_output_len": 1,
    "gen_num_groups": 1,
    "gen_prompts_per_group": 1,
    "gen_system_prompt_len": 1,
    "gen_question_len": 1,
    "gen_output_len": 1,
    "max_concurrency": 1,
    "warmup_requests": 0,
    "port": 1,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options, in groups."""
    _add_server(parser.add_argument_group("server"))
    _add_data(parser.add_argument_group("requests"))
    _add_traffic(parser.add_argument_group("traffic"))
    _add_output(parser.add_argument_group("output"))


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ConfigError naming option, value and limit."""
    for name, least in _AT_LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"{_option(name)} is {value}; it must be at least {least}")
    if not 0.0 <= args.random_range_ratio <= 1.0:
        raise ConfigError(
            f"--random-range-ratio is {args.random_range_ratio:g}; it must be from 0 to 1"
        )
    for name in ("request_rate", "burstiness"):
        if not getattr(args, name) > 0.0:
            raise ConfigError(
                f"{_option(name)} is {getattr(args, name):g}; it must be greater than 0"
            )
    if args.burstiness == float("inf"):
        raise ConfigError("--burstiness is inf; it must be finite")
    if args.plot_file and not args.multi:
        raise ConfigError("--plot-file draws a sweep: it needs --multi")


def rates_of(args: argparse.Namespace) -> list[float]:
    """The rates to run: one, or with --multi each of --request-rate-range. Raises ConfigError."""
    if not args.multi:
        return [args.request_rate]
    text = args.request_rate_range
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--request-rate-range is {text!r}; it must be numbers") from error
    if len(numbers) == 3:
        start, stop, step = numbers
        if step <= 0 or stop <= start or stop == float("inf"):
            raise ConfigError(
                f"--request-rate-range is {text!r}; start,stop,step need start < stop and step > 0"
            )
        numbers = [start + i * step for i in range(int((stop - start - 1e-9) // step) + 1)]
    if not all(number > 0 for number in numbers):
        raise ConfigError(f"--request-rate-range is {text!r}; rates must be greater than 0")
    return numbers


def extra_body(text: str) -> dict[str, Any]:
    """The object of --extra-request-body. Raises ConfigError."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--extra-request-body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("--extra-request-body must be a JSON object")
    return value


def _add_server(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--backend", choices=sorted(BACKENDS), default="srt", help="kind of server")
    add("--base-url", help="URL of the server, instead of host and port")
    add("--host", default="127.0.0.1")
    add("--port", type=int, help="by default the backend's own")
    add("--model", help="by default what /v1/models names")
    add("--tokenizer", help="folder, GGUF file or hub id; by default the model, if it is a folder")
    add("--disable-stream", action="store_true", help="wait for whole answers")
    add("--disable-ignore-eos", action="store_true", help="let answers end by themselves")
    add("--extra-request-body", default="{}", help="a JSON object, added to every request")


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--dataset-name", choices=DATASETS,
        help="by default sharegpt where --dataset-path is given, else random")  # fmt: skip
    add("--dataset-path", help="a ShareGPT JSON file: for sharegpt, or for multi-turn")
    add("--num-prompts", "--num-prompt", type=int, default=1000, help="or dialogues")
    add("--num-turns", type=int, default=4, help="questions of a dialogue, at most")
    add("--sharegpt-output-len", type=int, help="instead of the length of the recorded answer")
    add("--random-input-len", "--random-input", type=int, default=1024, help="of a turn, too")
    add("--random-output-len", "--random-output", type=int, default=1024, help="of a turn, too")
    add("--random-range-ratio", type=float, default=0.0, help="shortest length / longest")
    add("--gen-num-groups", type=int, default=64)
    add("--gen-prompts-per-group", type=int, default=16)
    add("--gen-system-prompt-len", type=int, default=2048)
    add("--gen-question-len", type=int, default=128)
    add("--gen-output-len", type=int, default=256)
    add("--seed", type=int, default=1)


def _add_traffic(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--request-rate", type=float, default=float("inf"), help="mean arrivals per second")
    add("--burstiness", type=float, default=1.0,
        help="shape of the gamma-distributed gaps; 1: Poisson, less: bursts")  # fmt: skip
    add("--max-concurrency", type=int, help="requests that may run at once")
    add("--multi", action="store_true", help="one run for each rate of --request-rate-range")
    add("--request-rate-range", default="2,34,2", help="start,stop,step; or a list of rates")
    add("--warmup-requests", type=int, default=1)


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--output-file", help="JSON lines are appended")
    add("--plot-file", help="a PNG with the throughput and latencies of a --multi sweep")
    add("--disable-tqdm", action="store_true", help="no progress bar")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
