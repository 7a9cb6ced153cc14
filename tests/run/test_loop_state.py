"""The table of normalize_loop_state: what a restart must do next, after a save at each moment of step 4."""

from __future__ import annotations

from typing import Any

import pytest

from tinytf.run.callbacks.exact_resume import normalize_loop_state

Counts = tuple[int, int, int, int]
NAMES = ("ready", "started", "processed", "completed")


def progress(total: Counts, current: Counts = (3, 3, 3, 3), last: bool = True) -> dict[str, Any]:
    return {
        "total": dict(zip(NAMES, total, strict=True)),
        "current": dict(zip(NAMES, current, strict=True)),
        "is_last_batch": last,
    }


def state(batch: Counts, validation: dict[str, Any], stepped: int) -> dict[str, Any]:
    return {
        "epoch_loop.batch_progress": progress(batch, batch, False),
        "epoch_loop.val_loop.batch_progress": validation,
        "epoch_loop.state_dict": {"_batches_that_stepped": stepped},
    }


DONE = (4, 4, 4, 4)
PENDING = progress((1, 1, 0, 0), (0, 0, 0, 0), False)
FINISHED = progress((6, 6, 6, 6))
TABLE = [
    pytest.param(
        state((4, 4, 4, 3), progress((3, 3, 3, 3)), 3), {"due": True, "validated": False}, state(DONE, PENDING, 3),
        id="in the last hook of a step whose validation is due",
    ),
    pytest.param(
        state(DONE, progress((4, 4, 4, 3), (1, 1, 1, 0), False), 3), {"due": True, "validated": False},
        state(DONE, PENDING, 3), id="in that validation",
    ),
    pytest.param(
        state(DONE, FINISHED, 3), {"due": True, "validated": True}, state(DONE, FINISHED, 3), id="after it",
    ),
    pytest.param(
        state(DONE, progress((4, 4, 3, 3)), 3), {"due": True, "validated": True},
        state(DONE, progress((3, 3, 3, 3)), 3),
        id="after it, in a run that was resumed into it",
    ),
    pytest.param(
        state(DONE, FINISHED, 4), {"due": True, "validated": True}, state(DONE, FINISHED, 3), id="when training ends",
    ),
    pytest.param(
        state(DONE, FINISHED, 3), {"due": False, "validated": True}, state(DONE, FINISHED, 4),
        id="after the last step's, which is not due",
    ),
    pytest.param(
        state((4, 4, 4, 3), progress((3, 3, 3, 3)), 3), {"due": False, "validated": False},
        state((4, 4, 4, 3), progress((3, 3, 3, 3)), 3), id="at a step without a validation",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("loop", "when", "wanted"), TABLE)
def test_a_restart_is_told_what_comes_next(loop: dict[str, Any], when: dict[str, bool], wanted: dict[str, Any]) -> None:
    normalize_loop_state(loop, **when, done=4, step=4)
    assert loop == wanted
