"""Grammars tried out before the engine hears of them: in processes that a bad one may take down."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from srt.channel import Vocabulary
from srt.config import Settings
from srt.errors import ConfigError, InvalidParameter, QueueFull, RequestError, UnsupportedParameter
from srt.grammar_compiler import check_whitespace
from srt.text.grammar_worker import Setup, Verdict, read_frame, write_frame
from srt.text.tokenizer import Tokenizer
from srt.types import Grammar

NUM_WORKERS = 2
MAX_PENDING = 64
CACHE_SIZE = 2048
START_TIMEOUT_S = 60.0


def vocabulary_of(tokenizer: Tokenizer, eos_ids: tuple[int, ...]) -> Vocabulary:
    """What grammars need of a tokenizer that covers the model's vocabulary."""
    size = len(tokenizer.pieces)
    return Vocabulary(
        pieces=tokenizer.pieces,
        special_ids=sorted(i for i in tokenizer.special if i < size),
        eos_ids=list(eos_ids),
        tokenizer_json=tokenizer.to_json(),
    )


def check_settings(settings: Settings) -> None:
    """Raises ConfigError for a whitespace pattern that no grammar can use."""
    pattern = settings.constrained_json_whitespace_pattern
    why = None if pattern is None else check_whitespace(pattern)
    if why is not None:
        raise ConfigError(f"--constrained-json-whitespace-pattern is {pattern!r}: {why}")


def open_checker(vocabulary: Vocabulary, vocab_size: int, settings: Settings) -> GrammarChecker:
    """The checker that `settings` ask for."""
    pattern = settings.constrained_json_whitespace_pattern
    return GrammarChecker(vocabulary, vocab_size, pattern, settings.grammar_timeout)


class GrammarChecker:
    """Tells whether grammars can be used; remembers what it told. Methods are thread-safe.

    Args:
        whitespace: see `compile_grammar`.
        timeout_s: for one grammar; it is refused when it takes longer.
    """

    def __init__(
        self, vocabulary: Vocabulary, vocab_size: int, whitespace: str | None, timeout_s: float
    ) -> None:
        self._setup = Setup(vocabulary, vocab_size, whitespace)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._pending: dict[bytes, Future[Verdict]] = {}
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._is_closed = False
        self._threads = ThreadPoolExecutor(NUM_WORKERS, "srt-grammar")

    def judge(self, grammar: Grammar) -> Verdict | Future[Verdict]:
        """Whether a grammar can be used: at once if that is known. Raises QueueFull."""
        key = _key(grammar)
        with self._lock:
            known = self._verdicts.get(key)
            if known is not None:
                self._verdicts.move_to_end(key)
                return known
            pending = self._pending.get(key)
            if pending is None:
                if len(self._pending) >= MAX_PENDING:
                    raise QueueFull(f"{MAX_PENDING} grammars wait to be compiled; try again")
                pending = self._pending[key] = self._threads.submit(self._judge, key, grammar)
            return pending

    def close(self) -> None:
        """End the workers; what still waits is refused."""
        self._is_closed = True
        for worker in list(self._all):
            worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in list(self._all):  # some may have started meanwhile
            worker.dispose()

    def _judge(self, key: bytes, grammar: Grammar) -> Verdict:
        verdict = None
        try:
            verdict = self._ask(grammar)
        finally:
            with self._lock:
                del self._pending[key]
                if verdict is not None:
                    self._verdicts[key] = verdict
                if len(self._verdicts) > CACHE_SIZE:
                    self._verdicts.popitem(last=False)
        # Not kept: perhaps the machine was busy.
        return verdict or Verdict(f"it was not compiled in {self._timeout_s:g} s")

    def _ask(self, grammar: Grammar) -> Verdict | None:
        """None: not in time."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = self._start_worker()
        begin = time.monotonic()
        answer = worker.ask(grammar, self._timeout_s)
        if answer is not None:
            with self._lock:
                self._idle.append(worker)
            return answer
        self._all.discard(worker)
        worker.dispose()
        if self._is_closed:
            return Verdict("the server is shutting down")
        if time.monotonic() - begin >= self._timeout_s:
            return None
        return Verdict("compiling it takes more memory or nesting than is allowed")

    def _start_worker(self) -> _Worker:
        worker = _Worker(self._setup)
        self._all.add(worker)
        if worker.answer(START_TIMEOUT_S) is None:
            self._all.discard(worker)
            worker.dispose()
            raise RuntimeError("the process that compiles grammars did not start")
        return worker


class _Worker:
    """One process."""

    def __init__(self, setup: Setup) -> None:
        root = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "srt.text.grammar_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": search, "PYTHONWARNINGS": "ignore"},
        )
        self._send(setup)

    def ask(self, grammar: Grammar, timeout_s: float) -> Verdict | None:
        """None: it died, or did not answer in time."""
        return self.answer(timeout_s) if self._send(grammar) else None

    def answer(self, timeout_s: float) -> Verdict | None:
        """The next answer. Frames are written whole: the first byte is enough to wait for."""
        stream = self._process.stdout
        assert stream is not None
        ready, _, _ = select.select([stream], [], [], timeout_s)
        try:
            frame = read_frame(stream) if ready else None  # type: ignore[arg-type]
        except ValueError:  # closed
            return None
        return msgspec.msgpack.decode(frame, type=Verdict) if frame else None

    def kill(self) -> None:
        """Whoever waits for its answer then gets None."""
        self._process.kill()
        self._process.wait()

    def dispose(self) -> None:
        """End it and let go of it; nobody waits for its answer."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()

    def _send(self, value: Setup | Grammar) -> bool:
        stream = self._process.stdin
        assert stream is not None
        try:
            write_frame(stream, value)  # type: ignore[arg-type]
        except OSError:
            return False
        return True


def _key(grammar: Grammar) -> bytes:
    return hashlib.sha256(f"{grammar.kind}\0{grammar.source}".encode("utf-8", "replace")).digest()


def refuse(verdict: Verdict, field: str) -> None:
    """Raises the RequestError that a verdict comes to; `field` is what the client calls it."""
    if verdict.error is None:
        return
    kind: type[RequestError] = UnsupportedParameter if verdict.is_unsupported else InvalidParameter
    where = f"{field}#{verdict.pointer}" if verdict.pointer else field
    raise kind(f"{where}: {verdict.error}", field)
