"""The check of a GPU runs on a CPU too, in small: it can then be believed the first time that there is one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.gpu import correctness, speed
from tests.gpu.place import REPOSITORY


def test_a_dry_run(tmp_path: Path) -> None:
    text, results = tmp_path / "text.txt", tmp_path / "results.json"
    text.write_text("To be, or not to be, that is the question.\n" * 400)
    command = [sys.executable, "-m", "tests.gpu.check", "--device=cpu", "--small", "--jobs=1", f"--corpus={text}"]
    done = subprocess.run([*command, f"--json={results}"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert set(found) == {*correctness.DRY, *speed.DRY}
    assert found["resume, bf16"]["kills"] == 1
    assert found["resume, bf16"]["differs in"] == []
    assert found["learning, tinytf fit"]["validations"]
    assert found["throughput, tinytf fit"]["tokens_per_second"] > 0
    assert "checks passed" in done.stdout.splitlines()[-1]
