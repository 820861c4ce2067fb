"""What jump-forward saves: documents with it and without, one at a time and eight together.

`python -m bench jump_forward --model models/SmolLM2-135M-Instruct --json out.json`. "long keys" is
one schema with the names that an API has; "all schemas" are those of `bench grammar_documents`.
Answers must be equal, token by token, at temperature 0 and at temperature 1 with a seed.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench._schemas import SERVED, Schema, array, closed, integer
from bench.record import Record, write
from srt.llm import Engine

PROMPT = "Write one JSON document for a test. Only JSON."
WEATHER = closed(
    measurement_station_identifier={"enum": ["north-atlantic-ridge", "south-pacific-basin"]},
    temperature_in_degrees_celsius=integer(-40, 50),
    probability_of_precipitation_percent=integer(0, 100),
    general_weather_description={"enum": ["partly cloudy with light winds", "heavy thunderstorms"]},
    hourly_wind_speed_measurements=array(integer(0, 99), 2, 3),
    is_severe_weather_warning_active={"type": "boolean"},
)
Case = tuple[Schema, dict[str, Any]]


@dataclass(slots=True)
class Side:
    """An engine, and what its answers took. cpu_s: of its processes, which a busy machine changes
    least."""

    engine: Engine
    processes: list[psutil.Process]
    answers: list[Any] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    @classmethod
    def start(cls, model: str, dtype: str, *, disabled: bool) -> Side:
        """An engine on the CPU."""
        before = psutil.Process().children(recursive=True)
        engine = Engine(
            model_path=model, device="cpu", dtype=dtype, disable_regex_jump_forward=disabled
        )
        after = psutil.Process().children(recursive=True)
        return cls(engine, [one for one in after if one not in before])

    def run(self, wanted: list[Case]) -> None:
        """Answers all of them together."""
        start, cpu_s = time.perf_counter(), self._cpu_s()
        params = [params for _, params in wanted]
        self.answers += self.engine.generate([PROMPT] * len(params), params)
        self.wall_s += time.perf_counter() - start
        self.cpu_s += self._cpu_s() - cpu_s

    def reset(self) -> None:
        """Forgets what was measured."""
        self.answers, self.wall_s, self.cpu_s = [], 0.0, 0.0

    def totals(self) -> tuple[int, int]:
        """Tokens, and the steps that brought them."""
        metas = [answer["meta_info"] for answer in self.answers]
        names = "completion_tokens", "completion_tokens_wo_jump_forward"
        tokens, steps = (sum(meta[name] for meta in metas) for name in names)
        return tokens, steps

    def _cpu_s(self) -> float:
        times = [one.cpu_times() for one in self.processes]
        return sum(t.user + t.system for t in times)


def cases(schemas: dict[str, Schema], seeds: range, **more: Any) -> list[Case]:
    """Each schema with each seed."""
    return [
        (
            schema,
            {"max_new_tokens": 300, "seed": seed, "json_schema": json.dumps(schema), **more},
        )
        for schema in schemas.values()
        for seed in seeds
    ]


def compare(
    name: str, jumping: Side, plain: Side, wanted: list[Case], at_once: int
) -> list[Record]:
    """Both sides answer in turns, so that they find the machine alike."""
    for side in (jumping, plain):
        side.reset()
    for i in range(0, len(wanted), at_once):
        for side in (jumping, plain):
            side.run(wanted[i : i + at_once])
    tokens, steps = jumping.totals()
    name = f"{name}, {at_once} at once"
    pairs = zip(jumping.answers, plain.answers, strict=True)
    equal = sum(a["text"] == b["text"] for a, b in pairs)
    params = {"answers": len(wanted), "tokens": tokens, "at once": at_once}
    records = [
        Record(f"{name}: equal answers", params, equal, "answers", limit=len(wanted)),
        Record(f"{name}: tokens a step", params, tokens / steps, "tokens"),
    ]
    for label, side in (("jumping", jumping), ("not jumping", plain)):
        records += [
            Record(f"{name}: {label}", params, tokens / side.wall_s, "tok/s"),
            Record(f"{name}: {label}, CPU time", params, 1000 * side.cpu_s / tokens, "ms/tok"),
        ]
    for record in records:
        print(record.row(), flush=True)
    return records


def main() -> None:
    """Measure with and without; compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sides = [Side.start(args.model, args.dtype, disabled=disabled) for disabled in (False, True)]
    weather = {"weather": WEATHER}
    for side in sides:  # compiles all grammars, records all tapes
        side.run(cases({**weather, **SERVED}, range(1), max_new_tokens=1))
        for count in range(1, 9):
            side.run(cases(weather, range(count), max_new_tokens=24))
    records = [
        *compare("long keys", *sides, cases(weather, range(6), temperature=0.7), 1),
        *compare("long keys", *sides, cases(weather, range(16), temperature=0.7), 8),
        *compare("41 schemas, greedy", *sides, cases(SERVED, range(1), temperature=0), 8),
        *compare("41 schemas, temperature 1", *sides, cases(SERVED, range(1), temperature=1), 8),
    ]
    for side in sides:
        side.engine.shutdown()
    if args.json is not None:
        write(records, args.json)


if __name__ == "__main__":
    main()
