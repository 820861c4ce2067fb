"""HuggingFace through its own client and $HF_ENDPOINT, against a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.fake_hub import FakeHub
from srt.hub_files import BIG_BYTES

CLIENT = """
import json, sys
from srt.errors import LoadError
from srt.hub import HubOptions, resolve_model
for line in sys.stdin:
    job = json.loads(line)
    options = HubOptions(**job.get("options", {}))
    try:
        told = str(resolve_model(job["model"], options, with_weights=job.get("weights", True)))
    except LoadError as error:
        told = "error: " + str(error)
    print(told, flush=True)
"""
BIG = os.urandom(1 << 20) * (BIG_BYTES // (1 << 20) + 4)
REPOS = {
    "org/name": {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model-00001-of-00002.safetensors": b"one",
        "model-00002-of-00002.safetensors": b"two",
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {x: f"model-0000{x}-of-00002.safetensors" for x in "12"}}
        ).encode(),
        "pytorch_model.bin": b"again",
        "modeling_x.py": b"raise SystemExit",
        "README.md": b"read me",
        "1_Pooling/config.json": b"{}",
        "original/params.json": b"{}",
    },
    "org/big": {"config.json": b"{}", "model.safetensors": BIG},
    "org/files": {"small-Q4_K_M.gguf": b"GGUF", "small-Q8_0.gguf": b"GGUF"},
    "org/empty": {"config.json": b"{}"},
}


class Client:
    """A process whose hub is `url`; `resolve` gives what it said."""

    def __init__(self, url: str, home: Path, **env: str) -> None:
        given = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "0"}
        path = os.pathsep.join(sys.path)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, **given, "PYTHONPATH": path, "NO_PROXY": "127.0.0.1", **env},
        )

    def ask(self, model: str, **job: Any) -> None:
        """Give it a job."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"model": model, **job}) + "\n")
        self.process.stdin.flush()

    def resolve(self, model: str, **job: Any) -> str:
        """A folder, or "error: " and why not."""
        self.ask(model, **job)
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def close(self) -> str:
        """End it; what it wrote to standard error."""
        return self.process.communicate(timeout=60)[1]


def wait_for_part(home: Path, size: int) -> Path:
    """The unfinished file, once so much of it is on the disk."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = [p for p in home.rglob("*.srt-part") if p.stat().st_size >= size]
        if found:
            return found[0]
        threading.Event().wait(0.02)
    raise AssertionError("the file does not grow")


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub(REPOS) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="module")
def client(hub: FakeHub, home: Path) -> Iterator[Client]:
    client = Client(hub.url, home)
    yield client
    client.close()


def files_in(folder: str) -> set[str]:
    root = Path(folder)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_only_what_serving_needs_comes_and_only_once(hub: FakeHub, client: Client) -> None:
    small = {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    small.add("1_Pooling/config.json")
    folder = client.resolve("org/name", weights=False)
    assert files_in(folder) == small
    hub.log.clear()
    assert client.resolve("org/name") == folder
    weights = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert files_in(folder) == small | weights
    assert set(hub.fetched()) == weights
    hub.log.clear()
    assert client.resolve("org/name") == folder
    assert hub.fetched() == []
    assert client.resolve("org/name", options={"with_code": True}) == folder
    assert "modeling_x.py" in files_in(folder)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("org/gated", {}, "org/gated is gated: accept its terms on its page at huggingface.co"),
        ("org/missing", {}, "neither a local folder nor a repository on HuggingFace"),
        ("org/name", {"revision": "v9"}, "org/name has no revision 'v9'"),
        ("org/files", {}, "as ORG/NAME/FILE: small-Q4_K_M.gguf, small-Q8_0.gguf"),
        ("org/files/other.gguf", {}, "org/files has no file other.gguf; name one"),
        ("org/empty", {}, "org/empty has no .safetensors or .bin weights"),
    ],
)
def test_what_cannot_be_had_says_what_to_do(
    client: Client, model: str, options: dict[str, Any], words: str
) -> None:
    told = client.resolve(model, options=options)
    assert told.startswith("error: ")
    assert words in told


def test_a_gguf_file_of_a_repository(client: Client) -> None:
    told = client.resolve("org/files/small-Q8_0.gguf")
    assert Path(told).name == "small-Q8_0.gguf"
    assert Path(told).read_bytes() == b"GGUF"
    assert client.resolve("org/files/small-Q8_0.gguf", weights=False) == told


def test_without_a_hub_the_cache_serves(hub: FakeHub, home: Path, client: Client) -> None:
    """Offline by wish, and with nobody at the address; a part of a model is told to be one."""
    folder = client.resolve("org/name")
    gguf = client.resolve("org/files/small-Q8_0.gguf")
    client.resolve("org/big", weights=False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        alone = Client(nobody, home)
        offline = Client(hub.url, home, HF_HUB_OFFLINE="1")
        for one, words in ((offline, "HF_HUB_OFFLINE is set"), (alone, "cannot be reached")):
            assert one.resolve("org/name") == folder
            assert one.resolve("org/name", weights=False) == folder
            assert one.resolve("org/files/small-Q8_0.gguf") == gguf
            for model, told in (
                ("org/unknown", "is not in the cache"),
                ("org/big", "lacks weights"),
            ):
                answer = one.resolve(model)
                assert words in answer
                assert told in answer
            assert "serving org/name from the cache" in one.close()


def test_a_download_goes_on_where_it_was_killed(hub: FakeHub, tmp_path: Path) -> None:
    """SIGKILL in the middle; the next process asks for the rest only. Then a lost connection."""
    hub.stall_at = 25 << 20
    killed = Client(hub.url, tmp_path)
    killed.ask("org/big")
    assert hub.stalled.wait(60)
    part = wait_for_part(tmp_path, 20 << 20)
    killed.process.send_signal(signal.SIGKILL)
    killed.process.communicate()
    hub.released.set()
    hub.log.clear()
    hub.cut_at = 11 << 20
    again = Client(hub.url, tmp_path)
    folder = again.resolve("org/big")
    shown = again.close()
    assert (Path(folder) / "model.safetensors").read_bytes() == BIG
    assert not part.exists()
    spans = [span for _, path, span in hub.log if span and "model.safetensors" in path]
    starts = [int(span.removeprefix("bytes=").rstrip("-")) for span in spans]
    assert starts[0] >= 20 << 20
    assert starts[1] > starts[0]
    assert "model.safetensors: 100%" in shown


def test_a_damaged_part_is_not_trusted(hub: FakeHub, tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--org--big" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(BIG).hexdigest()}.srt-part").write_bytes(b"\0" * (5 << 20))
    client = Client(hub.url, tmp_path)
    assert "model.safetensors of org/big was damaged" in client.resolve("org/big")
    folder = client.resolve("org/big")
    client.close()
    assert (Path(folder) / "model.safetensors").read_bytes() == BIG
