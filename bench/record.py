"""One shape for every benchmark record, and where it was measured."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """A measurement: `value` in `unit`, the `limit` that physics allows, the samples behind it."""

    name: str
    params: dict[str, Any]
    value: float
    unit: str
    limit: float | None = None
    higher_is_better: bool = False
    samples: list[float] = field(default_factory=list)

    @property
    def fraction_of_bound(self) -> float | None:
        """1.0 means the roofline is reached."""
        if self.limit is None or self.value == 0:
            return None
        return self.value / self.limit if self.higher_is_better else self.limit / self.value

    def row(self) -> str:
        """One line for the terminal."""
        fraction = self.fraction_of_bound
        tail = "" if fraction is None else f"   limit {self.limit:10.2f}   {fraction:6.1%}"
        return f"{self.name:44s} {self.value:12.2f} {self.unit:8s}{tail}"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def environment(commit: str | None = None) -> dict[str, str]:
    """Hardware, versions and commit of this run."""
    query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit"
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "gpu": _output("nvidia-smi", query, "--format=csv,noheader"),
        "cpu": f"{model} x {_output('nproc')}",
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "commit": commit or _output("git", "rev-parse", "--short", "HEAD"),
    }


def write(records: list[Record], path: Path, *, commit: str | None = None) -> None:
    """Write records and environment as one JSON file."""
    rows = [asdict(r) | {"fraction_of_bound": r.fraction_of_bound} for r in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"env": environment(commit), "records": rows}, indent=1) + "\n")
