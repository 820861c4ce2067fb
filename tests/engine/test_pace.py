"""When the next step is planned: times made up, no clock."""

from __future__ import annotations

import pytest

from srt.engine.pace import FIRST_MARGIN_S, MAX_MARGIN_S, MIN_MARGIN_S, Kind, Pace

DECODE = Kind(is_decode=True, size=4)
MS = 1e-3


def run_two(pace: Pace, step_s: float, start: float = 0.0, *, just_now: bool = True) -> float:
    """One step ends while another is in flight; returns when that one started."""
    pace.launched(DECODE, start, was_late=False)
    pace.launched(DECODE, start + MS, was_late=False)
    pace.finished(start + step_s, step_s, just_now=just_now)
    return start + step_s


def test_the_next_step_is_planned_shortly_before_the_running_one_ends() -> None:
    pace = Pace()
    start = run_two(pace, 8 * MS)
    assert pace.hold_s(start) == pytest.approx(8 * MS - FIRST_MARGIN_S, rel=0.02)
    assert pace.hold_s(start + 3 * MS) == pytest.approx(5 * MS - FIRST_MARGIN_S, rel=0.02)
    assert pace.hold_s(start + 7 * MS) == 0.0


def test_nothing_is_held_where_nothing_tells() -> None:
    pace = Pace()
    assert pace.hold_s(0.0) == 0.0  # nothing runs
    pace.launched(DECODE, 0.0, was_late=False)
    assert pace.hold_s(0.0) == 0.0  # no step of its kind has ended yet
    pace.launched(DECODE, MS, was_late=False)
    assert pace.hold_s(MS) == 0.0  # two are in flight
    pace.finished(9 * MS, 8 * MS, just_now=False)
    assert pace.hold_s(9 * MS) == 0.0  # it began nobody knows when


def test_the_shortest_of_the_last_steps_counts() -> None:
    pace = Pace()
    pace.launched(DECODE, 0.0, was_late=False)
    now = 0.0
    for ms in (9, 5, 9, 9):
        pace.launched(DECODE, now, was_late=False)
        now += ms * MS
        pace.finished(now, ms * MS, just_now=True)
    assert pace.hold_s(now) == pytest.approx(5 * MS - FIRST_MARGIN_S, rel=0.05)
    for _ in range(2):
        pace.launched(DECODE, now, was_late=False)
        now += 9 * MS
        pace.finished(now, 9 * MS, just_now=True)
    assert pace.hold_s(now) == pytest.approx(9 * MS - FIRST_MARGIN_S, rel=0.05)


def test_the_margin_grows_after_late_steps_and_shrinks_again() -> None:
    pace = Pace()
    now = run_two(pace, 40 * MS)
    held = [pace.hold_s(now)]
    for was_late in (True, True, *[False] * 2000, *[True] * 20):
        pace.launched(DECODE, now, was_late=was_late)
        now += 40 * MS
        pace.finished(now, 40 * MS, just_now=True)
        held.append(pace.hold_s(now))
    assert held[0] > held[1] > held[2]
    assert held[2002] == pytest.approx(40 * MS - MIN_MARGIN_S)
    assert held[-1] == pytest.approx(40 * MS - MAX_MARGIN_S)
