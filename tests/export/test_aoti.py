"""The compiled package. It takes a minute of a compiler, so it runs only where TINYTF_TEST_AOTI is set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinytf.export import aoti
from tinytf.export.evaluation import Evaluation
from tinytf.export.formats import FORMATS
from tinytf.export.judge import PASSED, Judge
from tinytf.export.subject import Subject
from tinytf.export.thresholds import THRESHOLDS


def test_without_a_compiler_it_says_so(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert aoti.refusal(subject) == "it takes a C++ compiler, and there is no no-such-compiler here"


@pytest.mark.skipif(not os.environ.get("TINYTF_TEST_AOTI"), reason="compiles for a minute: set TINYTF_TEST_AOTI=1")
def test_the_package_passes(subject: Subject, evaluation: Evaluation, tmp_path: Path) -> None:
    FORMATS["aoti"].write(subject, tmp_path / "model.aoti.pt2", None)
    outcome = Judge.of(subject, evaluation, THRESHOLDS, 1).verdict(FORMATS["aoti"], tmp_path / "model.aoti.pt2")
    assert outcome.status == PASSED, outcome.reasons
