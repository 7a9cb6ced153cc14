"""Freed memory is used again: shown by the pages that the system had to clear."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tinytf.training.hardware import TUNING_ENV_VARS

STEPS = """
import resource, sys, torch
from tinytf.training.hardware import tune_glibc_malloc
if sys.argv[1] == "kept":
    print(tune_glibc_malloc())
for step in range(12):
    if step == 8:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(1_000_000 * size) for size in range(1, 12)]
    blocks.clear()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another system's allocator")


def run(how: str, **environment: str) -> list[str]:
    clean = {key: value for key, value in os.environ.items() if key not in TUNING_ENV_VARS}
    command = [sys.executable, "-c", STEPS, how]
    return subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, check=True
    ).stdout.split()


@glibc
def test_later_steps_need_hardly_a_page_of_the_system() -> None:
    (before,) = run("as it is")
    kept, pages = run("kept")
    assert kept == "True"
    assert int(pages) < int(before) / 4


@glibc
def test_an_allocator_that_the_user_tuned_is_left_alone() -> None:
    kept, _ = run("kept", MALLOC_TRIM_THRESHOLD_="1000000")
    assert kept == "False"
