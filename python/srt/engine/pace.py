"""When to plan the next step: early enough for the device, late enough for who comes meanwhile.

With overlap a step is launched while the one before it runs. If that happens at once, whoever comes
during the rest of that step waits for both. The device's own timing of like steps says when the
running one will end; so the next is planned when somebody comes, or a margin before that end.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import NamedTuple

from srt.engine.step import StepShape

NUM_REMEMBERED = 4  # steps of a kind; the shortest of them counts
TOKENS_OF_A_KIND = 64  # extend steps whose tokens differ by less are alike
MIN_MARGIN_S, FIRST_MARGIN_S, MAX_MARGIN_S = 0.7e-3, 1.5e-3, 10e-3
GROWTH, DECAY = 1.3, 0.998  # of the margin: after a step that came too late, and after any other


class Kind(NamedTuple):
    """Steps that take about as long as each other."""

    is_decode: bool
    size: int

    @classmethod
    def of(cls, shape: StepShape) -> Kind:
        """A step's kind."""
        if shape.is_decode:
            return cls(True, shape.num_seqs)
        return cls(False, shape.num_tokens // TOKENS_OF_A_KIND)


class Pace:
    """Times in seconds; the caller's clock may start anywhere."""

    def __init__(self) -> None:
        self._known: defaultdict[Kind, deque[float]] = defaultdict(
            lambda: deque(maxlen=NUM_REMEMBERED)
        )
        self._in_flight: deque[Kind] = deque()
        self._start: float | None = None  # of the step on the device; None: not known
        self._margin = FIRST_MARGIN_S

    def launched(self, kind: Kind, began: float, *, was_late: bool) -> None:
        """A step is on its way, its launch began then.

        was_late: the one before it had ended by then, so that the device idled.
        """
        if not self._in_flight:
            self._start = began
        elif was_late:
            self._margin = min(self._margin * GROWTH, MAX_MARGIN_S)
        else:
            self._margin = max(self._margin * DECAY, MIN_MARGIN_S)
        self._in_flight.append(kind)

    def finished(self, now: float, device_s: float, *, just_now: bool) -> None:
        """The oldest step in flight has ended. just_now: the caller waited for it."""
        self._known[self._in_flight.popleft()].append(device_s)
        self._start = now if just_now else None

    def hold_s(self, now: float) -> float:
        """How long the next plan may wait for somebody to come; 0 where nothing tells."""
        if len(self._in_flight) != 1 or self._start is None:
            return 0.0
        known = self._known.get(self._in_flight[0])
        if known is None:
            return 0.0
        return max(0.0, self._start + min(known) - self._margin - now)
