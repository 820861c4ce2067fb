"""How far loading is: a bar on a terminal, a line per file in a log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """Told of every tensor that is loaded. Silent unless `visible`."""

    def __init__(self, total_bytes: int, *, visible: bool) -> None:
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._file: Path | None = None
        is_terminal = sys.stderr.isatty()
        self._logs = visible and not is_terminal
        self._bar = tqdm(
            total=total_bytes,
            desc="loading weights",
            unit="B",
            unit_scale=True,
            disable=not (visible and is_terminal),
        )

    def add(self, file: Path, num_bytes: int) -> None:
        """A tensor of `file` is loaded; a new file means that the one before it is done."""
        if file != self._file:
            self._finish_file()
            self._file = file
        self._done_bytes += num_bytes
        self._bar.update(num_bytes)

    def _finish_file(self) -> None:
        if self._file is not None and self._logs:
            percent = min(100, 100 * self._done_bytes // max(1, self._total_bytes))
            logger.info("loaded %s (%d %%)", self._file.name, percent)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish_file()
        self._bar.close()
