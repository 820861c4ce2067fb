"""Every option that README and docs name exists."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from srt import bench_latency
from srt.benchmark.arguments import add_arguments
from srt.config import add_settings
from srt.foreign_flags import ALWAYS_SO, REFUSED_FLAGS

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]")
OTHERS = {"--cacert"}  # of curl


@pytest.fixture(scope="module")
def known() -> set[str]:
    parsers = [argparse.ArgumentParser(), argparse.ArgumentParser(), bench_latency._parser()]
    add_settings(parsers[0])
    add_arguments(parsers[1])
    options = {o for p in parsers for action in p._actions for o in action.option_strings}
    sources = [*(ROOT / "bench").glob("*.py"), *(ROOT / "python/srt").rglob("*.py")]
    options |= {
        o for s in sources for o in re.findall(r'add\w*\(\s*"(--[a-z0-9-]+)"', s.read_text())
    }
    return options | set(ALWAYS_SO) | set(REFUSED_FLAGS) | OTHERS


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(known: set[str], page: str) -> None:
    named = set(FLAG.findall((ROOT / page).read_text(encoding="utf-8")))
    assert not named - known
