"""A vocabulary of bytes and a few longer tokens, for models whose weights are random."""

from __future__ import annotations

from srt.channel import Vocabulary

END, BYTES = 2, 3
LONGER = [b'{"', b'": ', b'", "', b"true", b"[1", b", ", b"abc", b"  ", "é".encode(), b"\xf0\x9f"]


def byte_vocabulary(vocab_size: int) -> Vocabulary:
    """Ids 0 to 2 are special, 2 ends an answer; then the 256 bytes, LONGER, and empty ids."""
    pieces = [b"<pad>", b"<s>", b"</s>", *(bytes([i]) for i in range(256)), *LONGER]
    pieces += [b""] * (vocab_size - len(pieces))
    return Vocabulary(pieces=pieces, special_ids=[0, 1, 2], eos_ids=[END])


def text_of(vocabulary: Vocabulary, tokens: list[int]) -> str:
    """The text of an answer: without its end token, without half a character at the end."""
    kept = [vocabulary.pieces[i] for i in tokens if i != END]
    return b"".join(kept).decode("utf-8", "ignore")
