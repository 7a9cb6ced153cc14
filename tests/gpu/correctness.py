"""What must be exactly so on a GPU, as it is on a CPU."""

from __future__ import annotations

import random
import re
import signal
from functools import partial
from typing import Any

import torch

from tests.gpu.place import REPOSITORY, Place
from tests.stress.campaign import CASES, arguments, at_instant, end_of, killed, run, unbroken
from tests.stress.killing import Instants, attempt

EXACT: dict[str, dict[str, Any]] = {
    "bf16": {},
    "compiled": {"model.compile": "true"},
    "float16": {"trainer.precision": "16-mixed"},
    "float32": {"trainer.precision": "32-true"},
    "bf16-true": {"trainer.precision": "bf16-true"},
    "loader processes, accumulating": {"data.num_workers": 2, "trainer.accumulate_grad_batches": 2},
    "adamw": CASES["adamw"],
    "ddp": {"trainer.strategy": "ddp"},
    "fsdp2": {"trainer.strategy": "fsdp2"},
}
"""Settings under which a killed run must end as one that was not."""


def settings(place: Place, case: dict[str, Any], deterministic: bool = True) -> dict[str, Any]:
    """Of the stress campaign's run, wide enough for the fused kernels of a GPU."""
    return {
        "trainer.accelerator": place.device,
        "trainer.precision": "bf16-mixed",
        "trainer.deterministic": str(deterministic).lower(),
        "model.d_model": 64,
        "model.max_seq_len": 64,
        "data.seq_len": 64,
        **case,
    }


def resumes(case: dict[str, Any], place: Place, deterministic: bool = True) -> dict[str, Any]:
    """Kill a run at three random instants and go on: weights, optimizer, rows and list of the best are the same."""
    given = settings(place, case, deterministic)
    reference, rng = unbroken(given, place.folder / "unbroken"), random.Random(0)
    instants = [rng.randint(1, reference.instants * 2 // 3) for _ in range(1 if place.small else 3)]
    end, struck = killed(given, place.folder / "killed", [at_instant(number) for number in instants])
    different = reference.end.differs(end)
    assert not (deterministic and different), different
    return {"kills": struck, "differs in": different}


def stops(place: Place) -> dict[str, Any]:
    """SIGTERM saves and exits 143; the run goes on to the same end."""
    given = settings(place, {})
    reference, folder = unbroken(given, place.folder / "unbroken"), place.folder / "stopped"
    folder.mkdir()
    (folder / "text.txt").write_bytes((place.folder / "unbroken" / "text.txt").read_bytes())
    # Two instants around each call: before the seventh step.
    code, _ = attempt(arguments(given), folder, Instants(13, signal.SIGTERM, only="training_step"))
    assert code == 128 + signal.SIGTERM, (folder / "attempts.log").read_text()[-3000:]
    run(given, folder)
    different = reference.end.differs(end_of(folder))
    assert not different, different
    return {"exit": code}


def commands(place: Place) -> dict[str, Any]:
    """Train, validate, generate, export and go on by the commands of the README."""
    tiny, on = str(REPOSITORY / "configs" / "tiny.yaml"), f"--trainer.accelerator={place.device}"
    _, seconds = place.tinytf("fit", f"--config={tiny}", on)
    best = min(row["val/loss"] for row in place.rows("tiny") if "val/loss" in row)
    validated, _ = place.tinytf("validate", "--ckpt_path=best", on)
    again = float(re.findall(r"val/loss\W+([\d.]+)", validated)[0])
    assert abs(again - best) < 1e-6, (best, validated)  # The journal has the shortest digits of a float32.
    found: dict[str, Any] = {"fit_seconds": seconds, "val_loss": best}
    if not place.small:
        for device in (place.device, "cpu"):
            place.tinytf(
                "generate", "--ckpt_path=best", "--prompt=Return ", f"--device={device}", "--max_new_tokens=20"
            )
        on_cpu = ("--trainer.accelerator=cpu", "--trainer.precision=32-true")
        found["on the CPU in float32"], _ = place.tinytf("validate", "--ckpt_path=best", *on_cpu)
        place.tinytf("fit", "--ckpt_path=last", "--trainer.max_steps=35", "--trainer.accelerator=cpu")
        assert [row["step"] for row in place.rows("tiny") if "val/loss" in row][-1] == 35
    found["export"], _ = place.tinytf("export", "--ckpt_path=best", *(["--formats=pt2"] if place.small else []))
    return found


def diverges(place: Place) -> dict[str, Any]:
    """A loss that is not finite stops the run before the step that it would spoil, with one line."""
    tiny = str(REPOSITORY / "configs" / "tiny.yaml")
    faster = ("--model.optimizer.muon_lr=1e30", "--model.optimizer.lr=1e30")
    said, _ = place.tinytf("fit", f"--config={tiny}", f"--trainer.accelerator={place.device}", *faster, code=1)
    (line,) = [line for line in said.splitlines() if line.startswith("tinytf: error: ")]
    assert "stopped before the optimizer step" in line, line
    assert "Traceback" not in said, said
    return {"line": line}


def runs_out(place: Place) -> dict[str, Any]:
    """Memory that does not hold the batch is one line that says what to lower."""
    large = {
        "trainer.precision": "bf16-mixed", "model.d_model": 2048, "model.n_heads": 16, "model.n_layers": 16,
        "model.max_seq_len": 256, "data.seq_len": 256, "data.batch_size": 1024, "data.corpus": "python-docs",
        "trainer.max_steps": 2,
    }  # fmt: skip
    flags = [f"--{key}={value}" for key, value in large.items()]
    said, _ = place.tinytf("fit", "--trainer.accelerator=cuda", *flags, code=1)
    last = [line for line in said.splitlines() if line.startswith("tinytf: error: ")][-1]
    assert "out of memory: lower data.batch_size" in last, said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    return {"line": last}


def refused(place: Place) -> dict[str, Any]:
    """What this machine has not is wrong input: one line, exit 2."""
    tiny, found = str(REPOSITORY / "configs" / "tiny.yaml"), {}
    for flags in (["--trainer.devices=64"], ["--trainer.accelerator=tpu"], ["--trainer.devices=[0,9]"]):
        said, _ = place.tinytf("fit", f"--config={tiny}", f"--trainer.accelerator={place.device}", *flags, code=2)
        assert "Traceback" not in said, said[-3000:]
        found[" ".join(flags)] = [line for line in said.splitlines() if "error: " in line][-1]
    return found


def profiled(place: Place) -> dict[str, Any]:
    """The profiler's table is of the GPU's kernels."""
    configs = [f"--config={REPOSITORY / 'configs' / name}" for name in ("tiny.yaml", "debug/profile.yaml")]
    said, _ = place.tinytf("fit", *configs, f"--trainer.accelerator={place.device}")
    (trace,) = place.folder.glob("checkpoints/*/version_0/profile/*.json.gz")
    if place.device == "cuda":
        assert "Self CUDA" in said, said[-3000:]
    return {"trace_bytes": trace.stat().st_size}


def versions(place: Place) -> dict[str, Any]:
    """What it runs with."""
    found = {"torch": str(torch.__version__), "device": place.device}
    if place.device == "cuda":
        found |= {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return found


CHECKS = {
    "versions": versions,
    "commands": commands,
    **{f"resume, {name}": partial(resumes, case) for name, case in EXACT.items()},
    "resume, kernels as they are": partial(resumes, {}, deterministic=False),
    "stop": stops,
    "diverge": diverges,
    "out of memory": runs_out,
    "refuse": refused,
    "profile": profiled,
}

TOGETHER = [name for name in CHECKS if name != "out of memory"]
"""Those that leave the others room on the GPU."""

DRY = ("commands", "resume, bf16")
"""Those of a dry run in the tests: the others need a GPU, or are what other tests hold on the CPU."""
