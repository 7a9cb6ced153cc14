"""Killed at any moment, any number of times, and resumed: the run that was never killed. `make stress` runs more."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stress.campaign import (
    CASES,
    Unbroken,
    arguments,
    at_instant,
    end_of,
    killed,
    prepare,
    run,
    unbroken,
)
from tests.stress.killing import attempt
from tinytf.cli.main import main

SWEPT = ("accumulating, coinciding", "every step", "workers, accumulating, bf16", "sanity, limited validation")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    return unbroken(CASES["plain"], tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize("name", SWEPT)
def test_three_kills_in_a_row(name: str, tmp_path: Path) -> None:
    of_case = unbroken(CASES[name], tmp_path / "unbroken")
    # The same instants in every run of the tests, spread over the whole of the run; others in other cases.
    rng = random.Random(name)
    spread = [rng.randint(of_case.instants * n // 9, of_case.instants * (n + 1) // 9) for n in (1, 2, 3)]
    end, struck = killed(CASES[name], tmp_path / "killed", [at_instant(number) for number in spread])
    assert struck == 3
    assert of_case.end.differs(end) == []


@pytest.mark.skipif(
    not os.environ.get("TINYTF_TEST_COMPILE"), reason="compiles for half a minute: TINYTF_TEST_COMPILE=1"
)
def test_a_kill_with_compiled_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    monkeypatch.setenv(
        "TORCHINDUCTOR_COMPILE_THREADS", "1"
    )  # A pool of compilers takes longer to start than to compile.
    case = {**CASES["compiled"], "trainer.max_steps": 6}
    of_case = unbroken(case, tmp_path / "unbroken")
    end, struck = killed(case, tmp_path / "killed", [at_instant(of_case.instants // 2)])
    assert struck == 1
    assert of_case.end.differs(end) == []


LAST_INSTANTS = 14
"""From the saving of the last best checkpoint on."""


@pytest.mark.parametrize("back", range(1, LAST_INSTANTS, 4))
def test_a_kill_at_the_very_end(back: int, reference: Unbroken, tmp_path: Path) -> None:
    """With the last step taken, Lightning's fit returns at once: what was not yet saved, linked or removed must be."""
    end, struck = killed(CASES["plain"], tmp_path, [at_instant(reference.instants - back)])
    assert struck == 1
    assert reference.end.differs(end) == []
    (journal,) = tmp_path.glob("checkpoints/killed/*/metrics.jsonl")
    assert '"event": "end"' in journal.read_text().splitlines()[-1]


def test_extending_a_run_whose_schedule_does_not_know_its_end_is_exact(tmp_path: Path) -> None:
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    case: dict[str, Any] = {"model.schedule": "Constant", "checkpoint.keep_last": 0, "checkpoint.every_n_steps": 4}
    for folder, steps in ((whole, (12,)), (longer, (4, 8, 12))):
        prepare(folder)
        for max_steps in steps:
            run({**case, "trainer.max_steps": max_steps}, folder)
    assert end_of(whole).differs(end_of(longer)) == []
    assert "learning rate jumps" not in (longer / "attempts.log").read_text()


def test_extending_one_that_decays_until_its_end_says_so(tmp_path: Path) -> None:
    prepare(tmp_path)
    run({"trainer.max_steps": 4}, tmp_path)
    run({"trainer.max_steps": 6}, tmp_path)
    assert "trainer.max_steps was 4 and is 6: Linear decays until max_steps" in (tmp_path / "attempts.log").read_text()


def test_a_run_that_was_moved_and_renamed_resumes_with_its_list_of_the_best(
    reference: Unbroken, tmp_path: Path
) -> None:
    prepare(tmp_path)
    code, _ = at_instant(reference.instants * 3 // 4)(arguments(CASES["plain"]), tmp_path)
    assert code == -9
    old = tmp_path / "checkpoints" / "killed" / "version_0"
    new = tmp_path / "elsewhere" / "renamed" / "version_7"
    new.parent.mkdir(parents=True, exist_ok=True)
    old.rename(new)
    ckpt = f"--ckpt_path={new / 'last.ckpt'}"
    code, _ = attempt(["fit", ckpt], tmp_path)
    assert code == 2
    assert "is not of a run in checkpoint.dir" in (tmp_path / "attempts.log").read_text()
    code, _ = attempt(["fit", ckpt, "--checkpoint.dir=elsewhere"], tmp_path)
    said = (tmp_path / "attempts.log").read_text()
    assert code == 0, said
    assert "resuming from step" in said
    runs = [path.parent for path in tmp_path.rglob("metrics.jsonl")]
    assert runs == [new]
    back = tmp_path / "back" / "checkpoints" / "killed" / "version_0"
    back.parent.mkdir(parents=True)
    shutil.copytree(new, back, symlinks=True)
    assert reference.end.differs(end_of(tmp_path / "back")) == []
    assert len(reference.end.best) == 2


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--trainer.max_time=00:00:10:00", "trainer.max_time is not a setting of tinytf"),
        ("--trainer.limit_train_batches=3", "trainer.limit_train_batches is not a setting of tinytf"),
        (
            '--trainer.callbacks={"class_path": "lightning.pytorch.callbacks.GradientAccumulationScheduler", '
            '"init_args": {"scheduling": {"2": 2}}}',
            "trainer.callbacks: GradientAccumulationScheduler",
        ),
    ],
)
def test_what_would_make_a_resume_inexact_is_refused_by_name(
    flag: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    assert main([*arguments(CASES["plain"]), flag]) == 2
    assert says in capfd.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("version_*"))


def test_the_overlay_for_requeued_jobs_starts_and_resumes(tmp_path: Path) -> None:
    prepare(tmp_path)
    overlay = Path(__file__).parents[2] / "configs" / "scale" / "slurm-requeue.yaml"
    flags = [*arguments({**CASES["plain"], "model.schedule": "Constant"})[:-1], f"--config={overlay}"]
    for max_steps, says in ((4, "starting fresh"), (8, "resuming from step 4 of 8")):
        code, _ = attempt([*flags, f"--trainer.max_steps={max_steps}"], tmp_path)
        said = (tmp_path / "attempts.log").read_text()
        assert code == 0, said
        assert says in said


def test_a_branch_keeps_no_list_of_files_that_are_not_in_it(tmp_path: Path) -> None:
    prepare(tmp_path)
    run({**CASES["plain"], "checkpoint.keep_last": 0}, tmp_path)
    first = tmp_path / "checkpoints" / "killed" / "version_0"
    before = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    code, _ = attempt(["fit", f"--ckpt_path={first / 'step-0000006.ckpt'}"], tmp_path)
    assert code == 0, (tmp_path / "attempts.log").read_text()
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == before
    second = first.with_name("version_1")
    final = torch.load(second / "last.ckpt", weights_only=True)
    (best,) = (state for key, state in final["callbacks"].items() if key.startswith("BestCheckpoints"))
    assert best["best_k_models"]
    assert all((second / Path(path).name).exists() for path in best["best_k_models"])
    assert (second / "best.ckpt").exists()
    theirs = torch.load(first / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(theirs[key], value) for key, value in final["state_dict"].items())
