"""A torch profiler around the steps of one rank, switched on and off from outside."""

from __future__ import annotations

from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from srt.engine.worker import Worker


class Profile:
    """At most one recording at a time; a trace file per rank."""

    def __init__(self, worker: Worker, tp_rank: int) -> None:
        self._worker = worker
        self._tp_rank = tp_rank
        self._recording: profile | None = None
        self._file = Path()

    def start(self, folder: str, *, with_host: bool = True) -> str:
        """Starts recording; the trace will be `folder/rank<r>.json`. Raises OSError.

        Args:
            with_host: record the host's operators too, which slows it down. On the CPU: always.
        """
        if self._recording is not None:
            raise OSError("a profile is being recorded already")
        target = Path(folder or ".").expanduser()
        target.mkdir(parents=True, exist_ok=True)
        self._file = target / f"rank{self._tp_rank}.json"
        activities = [ProfilerActivity.CUDA] if self._worker.is_cuda else []
        if with_host or not activities:
            activities.append(ProfilerActivity.CPU)
        self._recording = profile(activities=activities)
        self._worker.call(self._recording.start)
        return str(self._file)

    def stop(self) -> str:
        """Stops recording and writes the trace; returns its path. Raises OSError."""
        if self._recording is None:
            raise OSError("no profile is being recorded")
        recording, self._recording = self._recording, None
        self._worker.call(recording.stop)
        recording.export_chrome_trace(str(self._file))
        return str(self._file)
