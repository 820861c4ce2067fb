"""What a build takes, file by file: reads the log that Ninja leaves in a build folder.

`python -m bench build_times build/cp311-cp311-linux_x86_64 --json out.json`, after a clean build.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.record import Record, write

SHOWN = 20


def read_log(folder: Path) -> dict[str, tuple[float, float]]:
    """Start and end in seconds of each output; of several builds, the last."""
    found = {}
    for line in (folder / ".ninja_log").read_text().splitlines():
        if line.startswith("#"):
            continue
        start, end, _, output, _ = line.split("\t")
        found[output] = (int(start) / 1e3, int(end) / 1e3)
    return found


def short_name(output: str) -> str:
    """An object's source, a library's name."""
    name = output.removesuffix(".o")
    parts = name.split("/")
    return "/".join(part for part in parts if part != "CMakeFiles" and not part.endswith(".dir"))


def main() -> None:
    """Print the slowest files and the whole."""
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    log = read_log(args.folder)
    wall = max(end for _, end in log.values()) - min(start for start, _ in log.values())
    slowest = sorted(log.items(), key=lambda item: item[1][0] - item[1][1])
    records = [Record("whole build", {"outputs": len(log)}, wall, "s")]
    records += [Record(short_name(name), {}, end - start, "s") for name, (start, end) in slowest]
    for record in records[: SHOWN + 1]:
        print(record.row())
    if args.json:
        write(records, args.json)


if __name__ == "__main__":
    main()
