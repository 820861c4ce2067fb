"""Charts of benchmark results as PNG files; the only place that loads matplotlib."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srt.errors import ConfigError

try:
    from matplotlib.figure import Figure
except ImportError:
    Figure = None  # type: ignore[assignment, misc]

Rows = Sequence[dict[str, Any]]


def check_plots(path: str, option: str) -> None:
    """Raises ConfigError where a chart could not be written: better before a run than after."""
    if Figure is None:
        raise ConfigError(f"{option} needs the package matplotlib: pip install 'srt[plot]'")
    if not path.endswith(".png"):
        raise ConfigError(f"{option} is {path!r}; it must end in .png")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"{option} is {path!r}; there is no such folder")


def plot_rates(records: Rows, path: str) -> None:
    """Throughput and latencies over the offered rate, one point a run of a sweep."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = [r for r in records if r["completed"]]
    rates = [str(r["request_rate"]) for r in points]
    left.plot(rates, [r["output_throughput"] for r in points], "o-", label="output tokens/s")
    left.set(xlabel="request rate (req/s)", ylabel="output tokens/s", title="Throughput")
    served = left.twinx()
    served.plot(
        rates, [r["request_throughput"] for r in points], "s--", color="C1", label="requests/s"
    )
    served.set(ylabel="requests/s")
    for name, key, style in (
        ("median TTFT", "median_ttft_ms", "C0o-"),
        ("p99 TTFT", "p99_ttft_ms", "C0o--"),
        ("median ITL", "median_itl_ms", "C1s-"),
        ("p99 ITL", "p99_itl_ms", "C1s--"),
        ("median client queue", "median_client_queue_ms", "C7:"),
    ):
        values = [r[key] for r in points]
        if any(values):
            right.plot(rates, [float("nan") if v is None else v for v in values], style, label=name)
    right.set(xlabel="request rate (req/s)", ylabel="ms", yscale="log", title="Latency")
    for axes in (left, served):
        axes.set_ylim(bottom=0)
    handles = [*left.get_lines(), *served.get_lines()]
    left.legend(handles, [str(line.get_label()) for line in handles], loc="lower right")
    right.legend()
    right.grid(visible=True, which="both", alpha=0.3)
    left.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_query(records: Rows, query: str, path: str) -> None:
    """A query over the table `results`: series name, x, y. Raises ConfigError for a bad one."""
    names = list(dict.fromkeys(name for record in records for name in record))
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    with sqlite3.connect(":memory:") as database:
        database.execute(f"create table results ({quoted})")
        marks = ", ".join("?" * len(names))
        database.executemany(
            f"insert into results values ({marks})", [[r.get(n) for n in names] for r in records]
        )
        try:
            cursor = database.execute(query)
            found = cursor.fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ConfigError(f"--graph-sql: {error}") from error
    columns = [] if cursor.description is None else [column[0] for column in cursor.description]
    if len(columns) != 3 or not found:
        raise ConfigError(
            f"--graph-sql gives {len(found)} rows of {len(columns)} columns; it must give at least "
            "one of three: a series' name, x and y"
        )
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for series in dict.fromkeys(row[0] for row in found):
        points = sorted((row[1], row[2]) for row in found if row[0] == series)
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=str(series))
    axes.set(xlabel=columns[1], ylabel=columns[2])
    axes.grid(visible=True, alpha=0.3)
    axes.legend(title=columns[0])
    figure.savefig(path, dpi=120)
