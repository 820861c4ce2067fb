"""Imports point down: the directions of docs/architecture.md, read from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "python" / "srt"

# room -> rooms it must not import from, directly
FORBIDDEN = {
    "ops": {"engine", "layers", "models", "weights", "server", "text", "llm", "cli"},
    "layers": {"engine", "models", "server", "text", "llm", "cli"},
    "weights": {"engine", "server", "text", "llm", "cli"},
    "models": {"engine", "server", "text", "llm", "cli"},
    "engine": {"server", "text", "llm", "cli"},
    "text": {"engine", "server", "models", "layers", "ops", "llm", "cli"},
    "server": {"models", "layers", "ops", "weights", "core", "llm", "cli"},
    "channel": {"engine", "server", "models", "layers", "ops", "text"},
}
# files that the server process loads must not bring torch along
NO_TORCH = ("server", "text", "channel.py", "errors.py", "types.py", "config.py", "cli.py")
TORCH_BY_CHOICE = {"python_tokenizer.py"}


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files_of(room: str) -> list[Path]:
    """The sources of a room: a folder, or one file."""
    folder = ROOT / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{room}.py"]


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_imports_point_down(room: str) -> None:
    files = files_of(room)
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports_of(path)
        if name.startswith("srt.") and name.split(".")[1] in FORBIDDEN[room]
    ]
    assert not wrong


def test_the_server_side_names_no_torch() -> None:
    paths = [p for room in NO_TORCH for p in files_of(room.removesuffix(".py"))]
    wrong = [
        str(p.relative_to(ROOT))
        for p in paths
        if p.name not in TORCH_BY_CHOICE and any(n.split(".")[0] == "torch" for n in imports_of(p))
    ]
    assert not wrong


def test_only_core_imports_the_extension() -> None:
    users = [p.name for p in ROOT.rglob("*.py") if "srt._srt_core" in imports_of(p)]
    assert users == ["core.py"]
