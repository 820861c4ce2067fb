"""One server shared by the tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny_tokenizer
from server.process import ServerProcess
from server.running import Running


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer.write_chat_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def shared(model: Path) -> Iterator[Running]:
    with Running(model) as running:
        yield running


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    """The shared server; whatever a test did, it answers the next request and leaks nothing."""
    shared.engine.release()
    yield shared
    shared.engine.release()
    answer = shared.generate(text="Hello", sampling_params={"max_new_tokens": 2, "temperature": 0})
    assert answer["meta_info"]["completion_tokens"] == 2
    shared.wait_idle()


@pytest.fixture(scope="session")
def real_server() -> Iterator[ServerProcess]:
    """SmolLM2 with a chat template that takes tools; the tests that share it leave no trace."""
    template = Path(__file__).parent / "chat_with_tools.jinja"
    running = ServerProcess("--chat-template", str(template), "--enable-metrics")
    yield running
    assert running.close() == 0
