"""Local paths, the choice of files, and ModelScope; HuggingFace is in test_hub_server.py."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from srt.errors import LoadError
from srt.hub import HubOptions, resolve_model, wanted_files

NAMES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "chat_template.jinja",
    "README.md",
    "modeling_x.py",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "consolidated.safetensors",
    "pytorch_model.bin",
    "original/params.json",
    "1_Pooling/config.json",
]


def test_local_paths(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path), HubOptions()) == tmp_path
    file = tmp_path / "m.gguf"
    file.touch()
    assert resolve_model(str(file), HubOptions()) == file
    (tmp_path / "m.txt").touch()
    with pytest.raises(LoadError, match="is a file; a model is a folder"):
        resolve_model(str(tmp_path / "m.txt"), HubOptions())
    with pytest.raises(LoadError, match="does not exist, and it is no hub id"):
        resolve_model(str(tmp_path / "nothing"), HubOptions())


def test_only_needed_files_are_wanted() -> None:
    small = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"}
    small |= {"chat_template.jinja", "1_Pooling/config.json"}
    weights = {n for n in NAMES if n.startswith("model-")}
    assert set(wanted_files(NAMES, HubOptions(), with_weights=True)) == small | weights
    assert set(wanted_files(NAMES, HubOptions(), with_weights=False)) == small
    code = wanted_files(NAMES, HubOptions(with_code=True), with_weights=False)
    assert set(code) == small | {"modeling_x.py"}
    only_bin = [n for n in NAMES if not n.endswith("safetensors")]
    assert "pytorch_model.bin" in wanted_files(only_bin, HubOptions(), with_weights=True)


def test_modelscope_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(LoadError, match="pip install modelscope"):
        resolve_model("org/name", HubOptions(use_modelscope=True))


@pytest.mark.parametrize("there", ["model.safetensors", "pytorch_model.bin"])
def test_modelscope_fetches_one_weight_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    asked: list[dict[str, Any]] = []

    def fetch(model: str, **options: Any) -> str:
        asked.append({"model": model, **options})
        if any(fnmatch.fnmatch(there, pattern) for pattern in options["allow_patterns"]):
            (tmp_path / there).touch()
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=fetch))
    options = HubOptions(use_modelscope=True, revision="v1", download_dir="here")
    assert resolve_model("org/name", options, with_weights=False) == tmp_path
    assert len(asked) == 1
    assert (asked[0]["revision"], asked[0]["cache_dir"]) == ("v1", "here")
    assert "*.json" in asked[0]["allow_patterns"]
    assert "*.py" not in asked[0]["allow_patterns"]
    assert resolve_model("org/name", options) == tmp_path
    kinds = [call["allow_patterns"] for call in asked[2:]]
    expected = [["model*.safetensors"], ["*.safetensors"], ["pytorch_model*.bin"]]
    assert kinds == expected[: 1 if there == "model.safetensors" else 3]
    assert all(call["ignore_patterns"] == ["*/*"] for call in asked[2:])


def test_modelscope_says_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(model: str, **_: Any) -> str:
        raise RuntimeError(f"{model} is private")

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=fetch))
    with pytest.raises(LoadError, match="fetched from ModelScope: org/name is private"):
        resolve_model("org/name", HubOptions(use_modelscope=True))
