"""Where a model's files come from: a local folder, a GGUF file, HuggingFace or ModelScope."""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from srt.errors import LoadError

SMALL_FILES = ("*.json", "*.model", "*.jinja", "*.tiktoken", "vocab.txt", "merges.txt")
CODE_FILES = ("*.py",)
WEIGHT_FILES = (("model*.safetensors",), ("*.safetensors",), ("pytorch_model*.bin",), ("*.bin",))
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How hub files are fetched.

    revision: branch, tag or commit; None: the default branch.
    download_dir: where they are kept; None: the hub client's own cache.
    with_code: also the checkpoint's Python files (`--trust-remote-code`).
    """

    revision: str | None = None
    download_dir: str | None = None
    use_modelscope: bool = False
    with_code: bool = False


def resolve_model(model: str, options: HubOptions, *, with_weights: bool = True) -> Path:
    """The local folder (or GGUF file) of a model, fetched first if it is a hub id.

    Interrupted downloads resume, and what is there already is not fetched again.

    Args:
        model: a folder, a .gguf file, or a hub id such as `org/name`.
        with_weights: False fetches configuration and tokenizer only.

    Raises:
        LoadError: the model is not there, is gated, or the hub cannot be reached.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise LoadError(f"{model} is a file; a model is a folder, a .gguf file or a hub id")
        return path
    if not HUB_ID.fullmatch(model) or model.startswith("."):
        raise LoadError(f"{model} does not exist, and it is no hub id (organisation/name) either")
    if options.use_modelscope:
        return _from_modelscope(model, options, with_weights)
    return _from_huggingface(model, options, with_weights)


def wanted_files(names: Sequence[str], options: HubOptions, *, with_weights: bool) -> list[str]:
    """The files of a repository that serving needs: one weight format, nothing in sub-folders."""
    patterns = SMALL_FILES + (CODE_FILES if options.with_code else ())
    top = [name for name in names if "/" not in name]
    chosen = [name for name in top if _matches(name, patterns)]
    if with_weights:
        formats = ([n for n in top if _matches(n, kind)] for kind in WEIGHT_FILES)
        chosen += next((found for found in formats if found), [])
    return sorted(set(chosen))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _from_huggingface(model: str, options: HubOptions, with_weights: bool) -> Path:
    try:
        names = huggingface_hub.HfApi().list_repo_files(model, revision=options.revision)
        files = wanted_files(names, options, with_weights=with_weights)
        return _snapshot(model, options, allow_patterns=files)
    except GatedRepoError as e:
        raise LoadError(
            f"{model} is gated: accept its terms on huggingface.co and set HF_TOKEN"
        ) from e
    except RevisionNotFoundError as e:
        raise LoadError(f"{model} has no revision {options.revision!r}") from e
    except RepositoryNotFoundError as e:
        raise LoadError(
            f"{model} is neither a local folder nor a repository on HuggingFace that this "
            "HF_TOKEN may read; for ModelScope set SRT_USE_MODELSCOPE=true"
        ) from e
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError) as e:
        return _from_cache(model, options, with_weights, e)


def _from_cache(model: str, options: HubOptions, with_weights: bool, why: Exception) -> Path:
    """The hub cannot be asked: what an earlier run fetched will do, if it is whole."""
    try:
        folder = _snapshot(model, options, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        folder = None
    if folder is None or not (folder / "config.json").exists():
        raise LoadError(
            f"HuggingFace cannot be reached and {model} is not in the cache: {why}"
        ) from why
    weights = [p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin")]
    if with_weights and not weights:
        raise LoadError(
            f"HuggingFace cannot be reached and the cache has no weights of {model}: {why}"
        )
    return folder


def _snapshot(
    model: str,
    options: HubOptions,
    *,
    allow_patterns: list[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    folder = huggingface_hub.snapshot_download(
        model,
        revision=options.revision,
        cache_dir=options.download_dir,
        allow_patterns=allow_patterns,
        local_files_only=local_files_only,
    )
    return Path(str(folder))


def _from_modelscope(model: str, options: HubOptions, with_weights: bool) -> Path:
    try:
        modelscope = importlib.import_module("modelscope")
    except ImportError as e:
        raise LoadError("SRT_USE_MODELSCOPE is set; this needs `pip install modelscope`") from e
    skipped = [] if with_weights else ["*.safetensors", "*.bin", "*.pt", "*.gguf"]
    try:
        folder = modelscope.snapshot_download(
            model,
            revision=options.revision,
            cache_dir=options.download_dir,
            ignore_patterns=["*/*", *skipped],
        )
    except Exception as e:
        raise LoadError(f"{model} could not be fetched from ModelScope: {e}") from e
    return Path(folder)
