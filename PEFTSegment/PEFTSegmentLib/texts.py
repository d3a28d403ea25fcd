"""Times and sizes in words."""

from __future__ import annotations

from slicer.i18n import tr as _

MINUTE, HOUR = 60, 3600


def duration(seconds: float) -> str:
    """About how long: "20 s", "1 min 40 s", "12 min", "2 h 5 min"."""
    whole = max(0, round(seconds))
    if whole < MINUTE:
        return _("{seconds} s").format(seconds=whole)
    if whole < 10 * MINUTE:
        minutes, rest = divmod(5 * round(whole / 5), MINUTE)
        return (
            _("{minutes} min {seconds} s").format(minutes=minutes, seconds=rest)
            if rest
            else _("{minutes} min").format(minutes=minutes)
        )
    if whole < HOUR:
        return _("{minutes} min").format(minutes=round(whole / MINUTE))
    hours, rest = divmod(round(whole / MINUTE), MINUTE)
    return _("{hours} h {minutes} min").format(hours=hours, minutes=rest)


def time_left(seconds: float | None) -> str:
    """Time left in words, "" where it is not known."""
    return "" if seconds is None else _("{time} left").format(time=duration(seconds))
