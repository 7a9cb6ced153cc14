"""What every test needs: a cache of its own, and few threads."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before torch is imported: the tests' tensors are too small for threads, and the machine is shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or left in the user's own cache; commands run as subprocesses inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYTF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
