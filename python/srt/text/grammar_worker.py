"""The process in which a client's grammar is compiled first: `python -m srt.text.grammar_worker`.

A grammar can take the compiler minutes, all memory or the whole stack. Here that costs one
process, which its owner (`grammar_checker.py`) ends and starts anew. Frames on standard input and
output: 4 bytes little-endian length, then MessagePack.
"""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import sys
import threading
import time
from typing import Any, BinaryIO

import msgspec
from llguidance import LLMatcher, LLTokenizer

from srt.channel import Vocabulary
from srt.grammar_compiler import GrammarError, compile_grammar, open_tokenizer, readable
from srt.text.schema_pointer import find_pointer, unsupported_keyword
from srt.types import Grammar

# Less stack than any thread of the engine has: what survives here does not overflow there.
STACK_BYTES = 1 << 20
MEMORY_BYTES = 4 << 30  # of address space
WALK_TOKENS = 16
MAX_MASK_S = 0.1  # of CPU: a mask holds up a whole step


class Setup(msgspec.Struct, frozen=True):
    """The first frame."""

    vocabulary: Vocabulary
    vocab_size: int
    whitespace: str | None


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a Grammar frame. error: None if it can be used. pointer: where in a schema."""

    error: str | None = None
    pointer: str = ""
    is_unsupported: bool = False


def main() -> None:
    """Answers until standard input ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(sys.stdin.buffer, sys.stdout.buffer))
    thread.start()
    thread.join()


def write_frame(stream: BinaryIO, value: Any) -> None:
    """One frame."""
    data = msgspec.msgpack.encode(value)
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """One frame; None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    return stream.read(struct.unpack("<I", head)[0])


def judge(tokenizer: LLTokenizer, grammar: Grammar, whitespace: str | None) -> Verdict:
    """Compiles `grammar` and takes a few steps in it."""
    try:
        matcher = compile_grammar(tokenizer, grammar, whitespace)
        _walk(matcher)
    except GrammarError as error:
        if grammar.kind != "json_schema":
            return Verdict(error=str(error))
        return _judge_schema(tokenizer, grammar, whitespace, str(error))
    return Verdict()


def _judge_schema(
    tokenizer: LLTokenizer, grammar: Grammar, whitespace: str | None, message: str
) -> Verdict:
    def complaint_of(schema: Any) -> str | None:
        try:
            compile_grammar(tokenizer, Grammar("json_schema", json.dumps(schema)), whitespace)
        except GrammarError as error:
            return str(error)
        return None

    pointer = find_pointer(json.loads(grammar.source), message, complaint_of)
    keyword = unsupported_keyword(message)
    if keyword is not None:
        return Verdict(f"the keyword {keyword} is not supported", pointer, is_unsupported=True)
    return Verdict(message, pointer, is_unsupported="not supported" in message)


def _walk(matcher: LLMatcher) -> None:
    """A few random tokens: masks that are too slow or too large show early. Raises GrammarError."""
    chance = random.Random(0)
    for _ in range(WALK_TOKENS):
        begin = time.thread_time()
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            raise GrammarError(readable(matcher.get_error()))
        if time.thread_time() - begin > MAX_MASK_S:
            raise GrammarError(f"it takes more than {MAX_MASK_S:g} s to find what may follow")
        if matcher.is_stopped():
            return
        matcher.consume_token(_allowed_token(mask, chance))


def _allowed_token(mask: bytes, chance: random.Random) -> int:
    start = chance.randrange(len(mask))
    at = next(i % len(mask) for i in range(start, start + len(mask)) if mask[i % len(mask)])
    bits = [bit for bit in range(8) if mask[at] >> bit & 1]
    return at * 8 + chance.choice(bits)


def _die_with_parent(parent: int) -> None:
    """Standard input tells the same, but is not read while the compiler works."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _serve(source: BinaryIO, target: BinaryIO) -> None:
    setup = msgspec.msgpack.decode(read_frame(source) or b"", type=Setup)
    tokenizer = open_tokenizer(setup.vocabulary, setup.vocab_size)
    write_frame(target, Verdict())  # ready
    while (frame := read_frame(source)) is not None:
        grammar = msgspec.msgpack.decode(frame, type=Grammar)
        write_frame(target, judge(tokenizer, grammar, setup.whitespace))


if __name__ == "__main__":
    main()
