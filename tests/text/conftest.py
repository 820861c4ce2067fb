"""Tokenizers for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_tokenizer
from srt.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer.write_chat_checkpoint(tmp_path_factory.mktemp("bpe")))


@pytest.fixture(scope="session")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("sp")
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    return load_tokenizer(
        tiny_tokenizer.write_checkpoint(folder, tiny_tokenizer.sentence_piece(), **tokens)
    )
