"""Files of a HuggingFace repository in the hub client's cache, big ones with resume over runs."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants, file_download
from huggingface_hub.errors import HfHubHTTPError
from tqdm import tqdm

from srt.errors import LoadError
from srt.hf_config import read_json

log = logging.getLogger("srt.hub")

# What the client raises when nobody answers: its HTTP library's root class, whichever that is.
NETWORK_ERRORS: tuple[type[BaseException], ...] = (
    OSError,  # being offline, too
    *(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError"),
)
BIG_BYTES = 32 << 20  # smaller files are fetched again rather than resumed
NUM_STREAMS = 4
LOG_INTERVAL_S = 10.0
CHECK_TIMEOUT_S = 10.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DownloadBar(tqdm):  # type: ignore[type-arg]
    """How far one file is: a bar on a terminal, now and then a line in a log."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["mininterval"] = 0.2 if sys.stderr.isatty() else LOG_INTERVAL_S
        options["disable"] = bool(constants.HF_HUB_DISABLE_PROGRESS_BARS)
        super().__init__(*args, **options)


def check_reachable(model: str, revision: str | None) -> None:
    """Asks for one small file, without retries: raises what the hub says, or a network error."""
    url = huggingface_hub.hf_hub_url(model, "config.json", revision=revision)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=CHECK_TIMEOUT_S)
    except huggingface_hub.errors.RemoteEntryNotFoundError:
        return  # a repository without config.json: its files will tell


def list_files(model: str, revision: str | None) -> dict[str, int]:
    """The repository's files and their sizes in bytes."""
    tree = huggingface_hub.HfApi().list_repo_tree(model, revision=revision, recursive=True)
    return {
        entry.path: entry.size
        for entry in tree
        if isinstance(entry, huggingface_hub.hf_api.RepoFile)
    }


def fetch(
    model: str, revision: str | None, cache_dir: str | None, sizes: Mapping[str, int]
) -> Path:
    """The snapshot folder with the files of `sizes` in it.

    What is there is not fetched again. The client itself starts an interrupted file anew; big
    files therefore come through `fetch_big`, unless the hub keeps them in Xet.
    """
    big = [name for name, size in sizes.items() if size >= BIG_BYTES]
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        for done in [pool.submit(fetch_big, model, revision, cache_dir, name) for name in big]:
            done.result()
    folder = huggingface_hub.snapshot_download(
        model, revision=revision, cache_dir=cache_dir, allow_patterns=sorted(sizes)
    )
    return Path(str(folder))


def fetch_big(model: str, revision: str | None, cache_dir: str | None, name: str) -> None:
    """Puts one file's content into the cache, going on where an earlier run stopped."""
    url = huggingface_hub.hf_hub_url(model, name, revision=revision)
    found = huggingface_hub.get_hf_file_metadata(url)
    if found.etag is None or found.size is None:
        return  # the client knows what to do without
    is_xet = found.xet_file_data is not None and not constants.HF_HUB_DISABLE_XET
    if is_xet and huggingface_hub.utils.is_xet_available():
        return
    folder = file_download.repo_folder_name(repo_id=model, repo_type="model")
    blobs = Path(cache_dir or constants.HF_HUB_CACHE) / folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    blob, part = blobs / found.etag, blobs / f"{found.etag}.srt-part"
    headers = huggingface_hub.utils.build_hf_headers()  # type: ignore[attr-defined]
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # a storage host needs no token of ours
    with _alone(part.with_suffix(".srt-lock")):
        if blob.exists():
            return
        resumed = part.stat().st_size if part.exists() else 0
        if resumed:
            log.info("%s goes on at %d of %d bytes", name, resumed, found.size)
        with part.open("ab") as file:
            file_download.http_get(
                found.location,
                file,
                resume_size=resumed,
                headers=headers,
                expected_size=found.size,
                displayed_filename=name,
                tqdm_class=DownloadBar,
            )
        if resumed and _SHA256.fullmatch(found.etag) and _sha256(part) != found.etag:
            part.unlink()
            raise LoadError(f"{name} of {model} was damaged when it was resumed; start again")
        part.rename(blob)


def cached_folder(
    model: str, revision: str | None, cache_dir: str | None, name: str = "config.json"
) -> Path | None:
    """The snapshot folder that an earlier run filled, whole or not; None: it has no file `name`."""
    found = huggingface_hub.try_to_load_from_cache(
        model, name, cache_dir=cache_dir, revision=revision
    )
    return Path(found).parents[name.count("/")] if isinstance(found, str) else None


def missing_weights(folder: Path) -> Sequence[str]:
    """Weight files that a cached folder lacks; one entry "weights" where it has none at all."""
    for index in sorted(folder.glob("*.index.json")):
        names = read_json(index).get("weight_map")
        if isinstance(names, dict):
            return sorted({n for n in names.values() if not (folder / n).exists()})
    kinds = (".safetensors", ".bin", ".gguf")
    return [] if any(path.suffix in kinds for path in folder.iterdir()) else ["weights"]


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process and thread at a time."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
