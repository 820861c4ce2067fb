"""Where the CPU time of a streamed token goes: the server's own steps, without sockets."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, cast

from srt.channel import ServerEnd, StepEvents, decode_from_engine, encode
from srt.server.engine_client import EngineClient
from srt.server.engines import Engine, Engines
from srt.server.generation import Generation, Prompt, Sequence
from srt.server.openai.answer import Chunks
from srt.server.openai.schemas import StreamOptions
from srt.text.detokenizer import TextOptions
from srt.text.tokenizer import load_tokenizer

STEPS = 256


class Streams:
    """`count` chat streams whose chunks are made and thrown away."""

    def __init__(self, folder: Path, count: int, text: str) -> None:
        self._tokenizer = load_tokenizer(folder)
        self._ids = self._tokenizer.encode(text)
        engine = Engine(cast(Any, None), cast(ServerEnd, None))
        self._engine = engine
        engines = Engines([engine], watchdog_timeout=60.0)
        self._client = EngineClient(engines, shortest_queue=False, max_queued=count)
        for seq_id in range(count):
            self._add(seq_id)
        self.num_bytes = 0

    def time_phases(self) -> dict[str, float]:
        """Microseconds per token by phase."""
        count = len(self._engine.living)
        spent = {"decode the record": 0.0, "feed the sequences": 0.0, "text, JSON, chunk": 0.0}
        for step in range(STEPS):
            token = self._ids[step % len(self._ids)]
            record = StepEvents(
                seq_ids=list(range(count)), tokens=[token] * count, finish=[0] * count
            )
            data = encode(record)
            begin = time.process_time()
            events = decode_from_engine(data)
            decoded = time.process_time()
            self._client.take(self._engine, events)
            fed = time.process_time()
            self._client.flush()
            told = time.process_time()
            spent["decode the record"] += decoded - begin
            spent["feed the sequences"] += fed - decoded
            spent["text, JSON, chunk"] += told - fed
        return {name: 1e6 * seconds / (STEPS * count) for name, seconds in spent.items()}

    def _add(self, seq_id: int) -> None:
        options = TextOptions()
        sequence = Sequence(0, f"r{seq_id}", Prompt([1]), self._tokenizer, options)
        sequence.seq_id, sequence.engine = seq_id, 0
        generation = Generation([sequence], 1)
        chunks = Chunks(
            generation,
            {"id": f"chatcmpl-{seq_id:032x}", "created": 1, "model": "bench", "object": "chunk"},
            StreamOptions(),
            text_choice=_text_choice,
            new_choices=Sequence.take_text,
            count_usage=lambda _: {},
        )
        self._engine.living[seq_id] = sequence

        def tell() -> None:
            data = chunks.news(generation.take_news())
            if data:
                self.num_bytes += len(b"%x\r\n%b\r\n" % (len(data), data))

        generation.on_news(tell)


def _text_choice(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}


def time_phases(folder: Path, count: int, text: str) -> dict[str, float]:
    """Microseconds per token by phase, for so many streams."""

    async def run() -> dict[str, float]:
        return Streams(folder, count, text).time_phases()

    return asyncio.run(run())
