"""The exports that the pages name measure speeds as briefly as those of the export room's tests."""

from __future__ import annotations

from tests.export.conftest import a_short_measurement

__all__ = ["a_short_measurement"]
