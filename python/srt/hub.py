"""Where a model's files come from: a local folder, a GGUF file, HuggingFace or ModelScope."""

from __future__ import annotations

import errno
import fnmatch
import importlib
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from srt.errors import LoadError
from srt.hub_files import (
    NETWORK_ERRORS,
    cached_folder,
    check_reachable,
    fetch,
    list_files,
    missing_weights,
)

log = logging.getLogger("srt.hub")

SMALL_FILES = ("*.json", "*.model", "*.jinja", "*.tiktoken", "vocab.txt", "merges.txt")
FOLDER_FILES = ("*_Pooling/config.json",)  # of sentence-transformers
CODE_FILES = ("*.py",)
WEIGHT_FILES = (("model*.safetensors",), ("*.safetensors",), ("pytorch_model*.bin",), ("*.bin",))
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_GGUF = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)/(?P<file>[\w./-]+\.gguf)")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


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

    What is there already is not fetched again; see `hub_files.fetch` on interrupted downloads.

    Args:
        model: a folder, a .gguf file, a hub id such as `org/name`, or `org/name/file.gguf`.
        with_weights: False fetches configuration and tokenizer only (of a GGUF file: all of it).

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
    gguf = HUB_GGUF.fullmatch(model)
    if gguf is None and (not HUB_ID.fullmatch(model) or model.startswith(".")):
        raise LoadError(f"{model} does not exist, and it is no hub id (organisation/name) either")
    if options.use_modelscope:
        return _from_modelscope(model, options, with_weights)
    if gguf is not None:
        return _from_huggingface(gguf["id"], options, gguf=gguf["file"]) / gguf["file"]
    return _from_huggingface(model, options, with_weights=with_weights)


def wanted_files(names: Iterable[str], options: HubOptions, *, with_weights: bool) -> list[str]:
    """The files of a repository that serving needs: one weight format, little of sub-folders."""
    names = list(names)
    patterns = SMALL_FILES + (CODE_FILES if options.with_code else ())
    top = [name for name in names if "/" not in name]
    chosen = [name for name in top if _matches(name, patterns)]
    chosen += [n for n in names if n.count("/") == 1 and _matches(n, FOLDER_FILES)]
    if with_weights:
        formats = ([n for n in top if _matches(n, kind)] for kind in WEIGHT_FILES)
        chosen += next((found for found in formats if found), [])
    return sorted(set(chosen))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _from_huggingface(
    model: str, options: HubOptions, *, with_weights: bool = True, gguf: str | None = None
) -> Path:
    """The snapshot's folder. gguf: the one file that is wanted."""
    try:
        check_reachable(model, options.revision)
        sizes = list_files(model, options.revision)
        if gguf is not None:
            wanted = [gguf]
            if gguf not in sizes:
                raise LoadError(f"{model} has no file {gguf}{_gguf_files(sizes)}")
        else:
            wanted = wanted_files(sizes, options, with_weights=with_weights)
            _check_wanted(model, sizes, wanted, with_weights=with_weights)
        chosen = {name: sizes[name] for name in wanted}
        return fetch(model, options.revision, options.download_dir, chosen)
    except GatedRepoError as e:
        raise LoadError(
            f"{model} is gated: accept its terms on its page at huggingface.co, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from e
    except RevisionNotFoundError as e:
        raise LoadError(f"{model} has no revision {options.revision!r}") from e
    except DisabledRepoError as e:
        raise LoadError(f"{model} has been disabled on HuggingFace") from e
    except RepositoryNotFoundError as e:
        raise LoadError(
            f"{model} is neither a local folder nor a repository on HuggingFace that this "
            "HF_TOKEN may read; for ModelScope set SRT_USE_MODELSCOPE=true"
        ) from e
    except NETWORK_ERRORS as e:
        if isinstance(e, OSError) and e.errno in _DISK_ERRORS:
            raise LoadError(f"{model} cannot be stored: {e}; see --download-dir") from e
        return _from_cache(model, options, e, with_weights=with_weights, gguf=gguf)


def _check_wanted(
    model: str, names: Iterable[str], wanted: list[str], *, with_weights: bool
) -> None:
    """Raises LoadError for a repository that is no checkpoint, saying what to do."""
    if "config.json" not in wanted:
        raise LoadError(f"{model} has no config.json: it is no model{_gguf_files(names)}")
    if with_weights and not any(name.endswith((".safetensors", ".bin")) for name in wanted):
        raise LoadError(f"{model} has no .safetensors or .bin weights{_gguf_files(names)}")


def _gguf_files(names: Iterable[str]) -> str:
    files = [name for name in names if name.endswith(".gguf")]
    return f"; name one of its GGUF files as ORG/NAME/FILE: {', '.join(files)}" if files else ""


def _from_cache(
    model: str,
    options: HubOptions,
    why: BaseException,
    *,
    with_weights: bool,
    gguf: str | None,
) -> Path:
    """The hub cannot be asked: what an earlier run fetched will do, if it is whole."""
    is_offline = isinstance(why, OfflineModeIsEnabled)
    reason = "HF_HUB_OFFLINE is set" if is_offline else f"HuggingFace cannot be reached ({why})"
    help_ = "unset it" if is_offline else "check the network, HF_ENDPOINT and the proxy settings"
    folder = cached_folder(model, options.revision, options.download_dir, gguf or "config.json")
    if folder is None:
        raise LoadError(
            f"{reason} and {model} is not in the cache: {help_}, or name a local folder"
        ) from why
    missing = missing_weights(folder) if with_weights and gguf is None else []
    if missing:
        raise LoadError(
            f"{reason} and the cache at {folder} lacks {', '.join(missing)} of {model}: {help_}"
        ) from why
    log.warning("%s: serving %s from the cache at %s", reason, model, folder)
    return folder


def _from_modelscope(model: str, options: HubOptions, with_weights: bool) -> Path:
    try:
        modelscope = importlib.import_module("modelscope")
    except ImportError as e:
        raise LoadError("SRT_USE_MODELSCOPE is set; this needs `pip install modelscope`") from e
    small = [*SMALL_FILES, *FOLDER_FILES, *(CODE_FILES if options.with_code else ())]
    try:
        folder = _modelscope_snapshot(modelscope, model, options, allow_patterns=small)
        for kind in WEIGHT_FILES if with_weights else ():
            wanted = {"allow_patterns": list(kind), "ignore_patterns": ["*/*"]}
            folder = _modelscope_snapshot(modelscope, model, options, **wanted)
            if any(_matches(path.name, kind) for path in folder.iterdir()):
                break
    except Exception as e:
        raise LoadError(f"{model} could not be fetched from ModelScope: {e}") from e
    return folder


def _modelscope_snapshot(
    modelscope: Any, model: str, options: HubOptions, **patterns: list[str]
) -> Path:
    """The files that match, with those that are there already."""
    where = {"revision": options.revision, "cache_dir": options.download_dir}
    return Path(modelscope.snapshot_download(model, **where, **patterns))
