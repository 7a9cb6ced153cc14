"""Generated text on stdout, as it comes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tinytf.generation.streaming import Sample


class Printer:
    """Writes samples to stdout one after the other: each as it comes, or whole where it was done before its turn."""

    def __init__(self, prompt: str, samples: Sequence[Sample]) -> None:
        self._prompt = prompt
        self._samples = samples
        self._turn = 0
        self._shown = 0
        self._begin()

    def show(self) -> None:
        """Write what has come since the last call."""
        while self._turn < len(self._samples):
            sample = self._samples[self._turn]
            sys.stdout.write(sample.text[self._shown :])
            self._shown = len(sample.text)
            if sample.finish is None:
                break
            sys.stdout.write("\n")
            self._turn, self._shown = self._turn + 1, 0
            if self._turn < len(self._samples):
                self._begin()
        sys.stdout.flush()

    def _begin(self) -> None:
        count = len(self._samples)
        if count > 1:
            sys.stdout.write(f"--- sample {self._turn + 1} of {count}, seed {self._samples[self._turn].seed} ---\n")
        sys.stdout.write(self._prompt)
