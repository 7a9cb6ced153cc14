"""What every test needs: a cache of its own, and few threads."""

from __future__ import annotations

import logging
import os
import threading
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


@pytest.fixture(autouse=True)
def screen_as_it_was() -> Iterator[None]:
    """A command that runs inside a test sets up the package's log for itself alone."""
    _log_as_imported()
    excepthook = threading.excepthook
    yield
    _log_as_imported()
    threading.excepthook = excepthook


def _log_as_imported() -> None:
    # Before each test too: a fixture of a whole module that ran a command would otherwise decide what its tests see.
    own = logging.getLogger("tinytf")
    own.handlers[:], own.propagate = [], True
    own.setLevel(logging.NOTSET)
