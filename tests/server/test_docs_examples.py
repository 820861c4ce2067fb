"""The examples of README and docs are run as they stand, against SmolLM2."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.process import TIMEOUT_S, ServerProcess
from srt.text.chat import choose_format
from srt.text.tokenizer import load_tokenizer

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
