"""Embedding for use without HTTP: prompts out to the engines, vectors back; loads no torch."""

from __future__ import annotations

import queue
from array import array
from collections.abc import Sequence
from typing import Any

from srt.channel import EmbedRequest, SeqLogprobs
from srt.engine.client import EngineClient
from srt.errors import InternalServerError
from srt.types import FinishReason


class VectorWaiter:
    """Embeds prompts together and waits for all of them."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._cached: dict[int, int] = {}
        self._errors: dict[int, str] = {}

    def run(self, prompts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """Results in the order of `prompts`. Raises InternalServerError for one that failed."""
        requests = [EmbedRequest(seq_id=0, input_ids=array("i", ids).tobytes()) for ids in prompts]
        seq_ids = self._client.submit([(request, self._sink) for request in requests])
        try:
            for _ in seq_ids:
                self._finished.get()
        except BaseException:  # Ctrl-C: nobody waits for them any more
            self._client.abort(seq_ids)
            raise
        return [self._result(i, ids) for i, ids in zip(seq_ids, prompts, strict=True)]

    def _sink(
        self,
        seq_id: int,
        token: int,  # noqa: ARG002
        finish: int,
        cached_tokens: int,
        logprobs: SeqLogprobs | None,  # noqa: ARG002
        error: str | None,
        jumped: bool,  # noqa: ARG002
    ) -> None:
        self._cached[seq_id] = max(cached_tokens, 0)
        if finish not in (FinishReason.NONE, FinishReason.LENGTH):
            self._errors[seq_id] = error or "the request was aborted"
        if finish:
            self._finished.put(seq_id)

    def _result(self, seq_id: int, ids: Sequence[int]) -> dict[str, Any]:
        if seq_id in self._errors:
            raise InternalServerError(self._errors[seq_id])
        vector = array("f", self._client.take_vector(seq_id)).tolist()
        counts = {"prompt_tokens": len(ids), "cached_tokens": self._cached[seq_id]}
        return {"embedding": vector, "meta_info": {"id": f"{seq_id}", **counts}}
