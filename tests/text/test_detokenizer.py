"""Streaming: joined pieces equal the whole, no broken characters, stop strings anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_tokenizer
from srt.text.detokenizer import OutputText, StopFinder, TextOptions, TokenText
from srt.text.tokenizer import Tokenizer

VOCAB = tiny_tokenizer.byte_level().get_vocab_size()
IDS = st.lists(st.integers(0, VOCAB - 1), max_size=60)
LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


@given(ids=IDS, skip=st.booleans())
def test_streamed_equals_whole(byte_level: Tokenizer, ids: list[int], skip: bool) -> None:
    stream = TokenText(byte_level, TextOptions(skip_special_tokens=skip))
    text = "".join(stream.push([i]) for i in ids) + stream.finish()
    assert text == byte_level.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=40))
def test_valid_text_never_shows_a_broken_character(byte_level: Tokenizer, text: str) -> None:
    stream = TokenText(byte_level, TextOptions(skip_special_tokens=False))
    shown = ""
    for token_id in byte_level.encode(text):
        shown += stream.push([token_id])
        assert text.startswith(shown)
    assert shown + stream.finish() == text


def test_half_a_character_at_the_end_shows_as_one_mark(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("日")
    stream = TokenText(byte_level, TextOptions())
    assert stream.push(ids[:-1]) == ""
    assert stream.finish() == "\ufffd"


def test_an_answer_keeps_its_leading_space(sentence_piece: Tokenizer) -> None:
    ids = sentence_piece.encode("world", add_special_tokens=False)
    stream = TokenText(sentence_piece, TextOptions())
    assert stream.push(ids) + stream.finish() == " world"


@pytest.mark.parametrize(
    ("spaced", "text"), [(True, "<think> Hello <|im_end|>"), (False, "<think>Hello<|im_end|>")]
)
def test_spaces_between_special_tokens(byte_level: Tokenizer, spaced: bool, text: str) -> None:
    options = TextOptions(skip_special_tokens=False, spaces_between_special_tokens=spaced)
    stream = TokenText(byte_level, options)
    assert stream.push(byte_level.encode("<think>Hello<|im_end|>")) + stream.finish() == text


def first_stop(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """The naive model: look at every prefix in turn."""
    for end in range(len(text) + 1):
        starts = [(end - len(s), s) for s in stops if text[:end].endswith(s)]
        if starts:
            start, stop = min(starts)
            return start, end, stop
    return None


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 30)), trim=st.booleans())
def test_stop_strings_wherever_the_pieces_break(
    text: str, stops: list[str], cuts: list[int], trim: bool
) -> None:
    finder = StopFinder(stops, trim=trim)
    edges = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    shown = ""
    for start, end in pairwise(edges):
        shown += finder.push(text[start:end])
        if finder.matched is not None:
            break
    expected = first_stop(text, stops)
    if expected is None:
        assert finder.matched is None
        assert shown + finder.finish() == text
    else:
        assert finder.matched == expected[2]
        assert shown == text[: expected[0] if trim else expected[1]]


def test_the_beginning_of_a_stop_string_is_held_back_and_given_back() -> None:
    finder = StopFinder(["</end>"], trim=True)
    assert finder.push("a </e") == "a "
    assert finder.push("x") == "</ex"
    assert finder.push("<") == ""
    assert finder.finish() == "<"


def test_a_stop_string_over_token_borders(byte_level: Tokenizer) -> None:
    output = OutputText(byte_level, TextOptions(stop=("world, h",)))
    shown = ""
    for token_id in byte_level.encode("Hello world, hello there"):
        shown += output.push([token_id])
        if output.matched:
            break
    assert (shown, output.matched) == ("Hello ", "world, h")
