"""The examples of README and docs are run as they stand, against SmolLM2."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import tiny_tokenizer
from server.process import TIMEOUT_S, ServerProcess
from srt.text.chat import choose_format
from srt.text.tokenizer import load_tokenizer
from srt.tiny import write_tiny

ROOT = Path(__file__).parents[2]
PAGES = (
    *("README.md", "docs/http-api.md", "docs/sampling.md", "docs/chat-templates.md"),
    "docs/structured-output.md",
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
HOST = re.compile(r"http://(127\.0\.0\.1|localhost):30000")


def examples(language: str) -> list[tuple[str, str]]:
    """Page and code of each example that asks a server."""
    return [
        (f"{page}:{i}", code)
        for page in PAGES
        for i, (kind, code) in enumerate(BLOCK.findall((ROOT / page).read_text(encoding="utf-8")))
        if kind == language and HOST.search(code)
    ]


@pytest.mark.parametrize(("place", "code"), examples("python"))
def test_python(
    real_server: ServerProcess, capsys: pytest.CaptureFixture[str], place: str, code: str
) -> None:
    names: dict[str, Any] = {}
    try:
        exec(compile(HOST.sub(real_server.url, code), place, "exec"), names)
    finally:
        for value in names.values():
            if isinstance(value, httpx.Client | openai.OpenAI):
                value.close()
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("place", "code"), examples("sh"))
def test_shell(real_server: ServerProcess, place: str, code: str) -> None:
    command = HOST.sub(real_server.url, code)
    done = subprocess.run(
        ["bash", "-ec", command], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, (place, done.stderr)
    assert done.stdout.strip()
    assert '"error"' not in done.stdout


def test_python_without_http(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/SmolLM2-135M-Instruct").symlink_to(smollm2)
    readme = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    (code,) = [code for kind, code in readme if kind == "python" and "srt.llm" in code]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Paris."


def bench_commands() -> list[tuple[str, str]]:
    """Page and command line of the benchmark commands; test_bench_latency has --correct."""
    return [
        (page, code.replace("\\\n", " ").strip())
        for page in ("docs/benchmarks.md", "docs/tuning.md")
        for kind, code in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
        if kind == "sh" and "srt.bench_" in code and "--correct" not in code
    ]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, vocab_size=512)
    tiny_tokenizer.write_checkpoint(folder, tiny_tokenizer.byte_level())
    return folder


@pytest.mark.parametrize(("page", "command"), bench_commands())
def test_benchmarks(
    real_server: ServerProcess, tiny_model: Path, tmp_path: Path, page: str, command: str
) -> None:
    """As they stand, but for fewer prompts, and a model of the same name that is smaller."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/SmolLM2-135M-Instruct").symlink_to(tiny_model)
    port = real_server.url.rpartition(":")[2]
    line = re.sub(r"--num-prompts \d+", "--num-prompts 2", command)
    argv = shlex.split(line.replace("--port 30000", f"--port {port}"))
    assert argv[0] == "python"
    if "srt.bench_latency" in argv:
        argv += ["--max-total-tokens", "4096", "--device", "cpu", "--dtype", "float32"]
    done = subprocess.run(
        [sys.executable, *argv[1:]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, (page, done.stderr)
    for name in re.findall(r"\S+\.(?:png|jsonl)", command):
        assert (tmp_path / name).stat().st_size > 100
    assert "Successful requests:" in done.stdout or "Prefill. latency" in done.stdout


def test_template_files(smollm2: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/chat-templates.md").read_text(encoding="utf-8")
    tokenizer = load_tokenizer(smollm2)
    texts = {}
    for kind, code in BLOCK.findall(page):
        if kind in ("json", "jinja"):
            file = tmp_path / f"template.{kind}"
            file.write_text(code, encoding="utf-8")
            messages = [{"role": "user", "content": "Hi"}]
            texts[kind] = choose_format(tokenizer, str(file)).prompt(messages).text
    assert (
        texts["json"]
        == texts["jinja"]
        == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    )
