"""The one way in which tinytf writes a time down."""

from __future__ import annotations

from datetime import datetime, timezone


def utc_now() -> str:
    """Now, as ISO 8601 in UTC with microseconds: ``2026-01-31T12:00:00.000000Z``."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds_between(earlier: str, later: str) -> float:
    """Seconds from one such time to another."""
    # Python 3.10's fromisoformat does not know the Z.
    start, end = (datetime.fromisoformat(time.replace("Z", "+00:00")) for time in (earlier, later))
    return (end - start).total_seconds()
