"""`python -m bench NAME ARGS`: runs `bench.NAME`; without a name, lists what there is."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import bench


def main() -> None:
    """Dispatch to one benchmark module."""
    names = [m.name for m in pkgutil.iter_modules(bench.__path__) if not m.name.startswith("_")]
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    module = importlib.import_module(f"bench.{name}") if name in names else None
    if module is None or not hasattr(module, "main"):
        runnable = [n for n in names if hasattr(importlib.import_module(f"bench.{n}"), "main")]
        sys.exit(f"usage: python -m bench NAME [--help]; NAME is one of {', '.join(runnable)}")
    sys.argv = [f"bench {name}", *sys.argv[2:]]
    module.main()


if __name__ == "__main__":
    main()
