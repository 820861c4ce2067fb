"""Where models come from, with the hub clients replaced by fakes: no test touches the network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

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
    small.add("chat_template.jinja")
    weights = {n for n in NAMES if n.startswith("model-")}
    assert set(wanted_files(NAMES, HubOptions(), with_weights=True)) == small | weights
    assert set(wanted_files(NAMES, HubOptions(), with_weights=False)) == small
    code = wanted_files(NAMES, HubOptions(with_code=True), with_weights=False)
    assert set(code) == small | {"modeling_x.py"}
    only_bin = [n for n in NAMES if not n.endswith("safetensors")]
    assert "pytorch_model.bin" in wanted_files(only_bin, HubOptions(), with_weights=True)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> list[str]:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)


@pytest.mark.usefixtures("offline")
def test_offline_without_cache(tmp_path: Path) -> None:
    options = HubOptions(download_dir=str(tmp_path))
    with pytest.raises(LoadError, match="cannot be reached and org/name is not in the cache"):
        resolve_model("org/name", options)


@pytest.mark.usefixtures("offline")
def test_offline_with_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    (tmp_path / "config.json").touch()
    assert resolve_model("org/name", HubOptions(), with_weights=False) == tmp_path
    with pytest.raises(LoadError, match="the cache has no weights of org/name"):
        resolve_model("org/name", HubOptions())
    (tmp_path / "model.safetensors").touch()
    assert resolve_model("org/name", HubOptions()) == tmp_path


def test_modelscope_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(LoadError, match="pip install modelscope"):
        resolve_model("org/name", HubOptions(use_modelscope=True))


def test_modelscope_skips_weights_where_none_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def fetch(model: str, **options: Any) -> str:
        asked.append({"model": model, **options})
        return str(tmp_path)

    fake = SimpleNamespace(snapshot_download=fetch)
    monkeypatch.setitem(sys.modules, "modelscope", fake)
    options = HubOptions(use_modelscope=True, revision="v1", download_dir="here")
    assert resolve_model("org/name", options, with_weights=False) == tmp_path
    assert resolve_model("org/name", options) == tmp_path
    assert asked[0]["revision"] == "v1"
    assert asked[0]["cache_dir"] == "here"
    assert "*.safetensors" in asked[0]["ignore_patterns"]
    assert "*.safetensors" not in asked[1]["ignore_patterns"]
