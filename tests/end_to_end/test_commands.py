"""The README's commands, as a user types them, from `fit` to `generate`."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer

from tests.end_to_end.conftest import Tinytf
from tinytf.weights.checkpoint import load_model


def rows(run: Path, event: str = "metrics") -> list[dict[str, object]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record for record in records if record["event"] == event]


def val_loss(table: str) -> float:
    """The number that `validate` printed."""
    match = re.search(r"val/loss\D+([\d.]+)", table)
    assert match, table
    return float(match[1])


def test_fit_leaves_what_the_design_says(run_folder: Path) -> None:
    names = {path.name for path in run_folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "best.ckpt", "last.ckpt", "step-0000030.ckpt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    best = sorted(name for name in names if "val_loss" in name)
    assert len(best) == 3
    for link in ("best.ckpt", "last.ckpt"):
        target = (run_folder / link).readlink()
        assert not target.is_absolute()
        assert target.name in names
    assert (run_folder / "last.ckpt").readlink().name == "step-0000030.ckpt"
    lowest = min(best, key=lambda name: float(name.split("val_loss-")[1].removesuffix(".ckpt")))
    assert (run_folder / "best.ckpt").readlink().name == lowest
    assert not [name for name in names if name.endswith(".tmp")]


def test_fit_learns_and_says_so_in_plain_lines(workplace: Path, run_folder: Path) -> None:
    losses = [row["train/loss"] for row in rows(run_folder) if "train/loss" in row]
    assert losses[-1] < losses[0] - 0.5  # type: ignore[operator]
    said = (workplace / "fit.stderr").read_text()
    assert re.search(r"step 30/30 +loss \d\.\d{4} +val \d\.\d{4} +[\d,]+ tok/s +eta 0:00", said), said
    assert (workplace / "fit.stdout").read_text() == ""
    for noise in ("Warning", "Tip", "litlogger", "GPU available", "deprecated"):
        assert noise not in said, said


def test_the_checkpoint_is_plain_and_carries_everything(run_folder: Path) -> None:
    content = torch.load(run_folder / "best.ckpt", weights_only=True)
    entry = content["tinytf"]
    assert entry["format"] == 1
    assert entry["config"] == yaml.safe_load((run_folder / "config.yaml").read_text())
    assert Tokenizer.from_str(entry["tokenizer"]).get_vocab_size() == entry["model"]["vocab_size"]
    assert set(entry["data"]) >= {"corpus", "sha256", "split_tokens", "split_bytes"}
    provenance = json.dumps(entry["provenance"])
    for word in ("commit", "branch", "dirty", "command", "time", "cpu", "torch"):
        assert word in provenance
    assert all(key.startswith("model.") and "_orig_mod" not in key for key in content["state_dict"])


@pytest.mark.parametrize("which", ["best", "last", "file"])
def test_validate_prints_the_loss_that_the_run_logged(
    which: str, workplace: Path, run_folder: Path, tinytf: Tinytf
) -> None:
    path = str(run_folder / "last.ckpt") if which == "file" else which
    link = "best" if which == "best" else "last"
    step = torch.load(run_folder / f"{link}.ckpt", weights_only=True)["global_step"]
    (logged,) = (row["val/loss"] for row in rows(run_folder) if row["step"] == step and "val/loss" in row)
    done = tinytf(workplace, "validate", "--ckpt_path", path)
    # The journal keeps the shortest decimals of a float32.
    assert torch.tensor(val_loss(done.stdout)).item() == torch.tensor(logged).item()
    for name in ("val/loss", "val/perplexity", "val/bits_per_byte"):
        assert name in done.stdout


def test_measuring_on_a_text_that_has_changed_since_training_says_so(
    workplace: Path, run_folder: Path, tinytf: Tinytf
) -> None:
    flags = ("validate", "--ckpt_path", str(run_folder / "last.ckpt"))
    assert "may have been trained on" not in tinytf(workplace, *flags).stderr
    moved = tinytf(workplace, *flags, "--data.val_fraction", "0.2").stderr
    assert "its text or its parts are not those of the training of" in moved
    assert "what is measured now may have been trained on" in moved
    (workplace / "other.txt").write_text("What's in a name?\n" * 900)
    assert "may have been trained on" not in tinytf(workplace, *flags, "--data.corpus", "other.txt").stderr


def test_validate_is_the_loss_of_every_token_of_the_split_once(run_folder: Path) -> None:
    """Against the model and the text alone: no Lightning, no batches of ours."""
    from tinytf.data.datamodule import TextDataModule

    loaded = load_model(run_folder / "last.ckpt")
    data = TextDataModule(**{key: value for key, value in loaded.entry["config"]["data"].items() if key != "seed"})
    data.prepare_data()
    data.setup()
    ids = torch.from_numpy(data.split("val").astype("int64"))
    window, total = data.seq_len, 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, window):
            piece = ids[start : start + window + 1]
            logits = loaded.model(piece[None, :-1])[0]
            total += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
    (logged,) = (row["val/loss"] for row in rows(run_folder) if row["step"] == 30 and "val/loss" in row)
    assert total / (len(ids) - 1) == pytest.approx(logged, rel=1e-5)


def test_the_config_of_a_run_repeats_it(workplace: Path, run_folder: Path, tinytf: Tinytf, tmp_path: Path) -> None:
    shutil.copy(run_folder / "config.yaml", tmp_path / "config.yaml")
    tinytf(tmp_path, "fit", "--config", "config.yaml")
    first, second = (
        torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (run_folder, tmp_path / "checkpoints" / "tiny" / "version_0")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_precedence_is_checkpoint_then_files_then_flags(workplace: Path, tinytf: Tinytf, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  dropout: 0.2\ndata:\n  batch_size: 3\n")
    flags = ("--config", str(overlay), "--data.batch_size", "5", "--print_config")
    printed = yaml.safe_load(tinytf(workplace, "fit", "--ckpt_path", "last", *flags).stdout)
    assert printed["model"]["d_model"] == 64  # The checkpoint's.
    assert printed["model"]["dropout"] == 0.2  # The file's.
    assert printed["data"]["batch_size"] == 5  # The flag's.


def test_a_longer_run_goes_on_in_its_folder(workplace: Path, tinytf: Tinytf, tmp_path: Path) -> None:
    shutil.copytree(workplace / "checkpoints", tmp_path / "checkpoints", symlinks=True)
    said = tinytf(tmp_path, "fit", "--ckpt_path", "last", "--trainer.max_steps", "35").stderr
    run = tmp_path / "checkpoints" / "tiny" / "version_0"
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert "resuming from step 30 of 35" in said
    assert "learning rate" in said  # Linear decays until max_steps, which was another.
    steps = [row["step"] for row in rows(run) if "train/loss" in row]
    assert steps == [5, 10, 15, 20, 25, 30, 35]
    again = tinytf(tmp_path, "fit", "--ckpt_path", "last").stderr
    assert "already at step 35 of 35" in again


def test_a_run_with_a_class_of_lightning_resumes_in_its_place_and_is_refused_elsewhere(
    workplace: Path, tinytf: Tinytf, tmp_path: Path
) -> None:
    (tmp_path / "configs").symlink_to(workplace / "configs")
    stopping = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]
    line = ["fit", "--config", "configs/tiny.yaml", *stopping, "--trainer.val_check_interval", "1"]
    line += ["--trainer.limit_val_batches", "1", "--ckpt_path", "last", "--model.schedule.warmup_steps", "1"]
    tinytf(tmp_path, *line, "--trainer.max_steps", "3")
    run = tmp_path / "checkpoints" / "tiny" / "version_0"
    assert len(list(run.glob("step-*-val_loss-*.ckpt"))) == 3
    said = tinytf(tmp_path, *line, "--trainer.max_steps", "6", "--checkpoint.save_top_k", "1").stderr
    assert "resuming from step 3 of 6" in said
    (best,) = run.glob("step-*-val_loss-*.ckpt")
    assert (run / "best.ckpt").resolve() == best.resolve()
    losses = [row["val/loss"] for row in rows(run) if "val/loss" in row]
    assert f"{min(losses):.4f}" in best.name  # type: ignore[type-var]
    tinytf(tmp_path, "validate", "--ckpt_path", "last")
    assert "already at step 6 of 6" in tinytf(tmp_path, "fit", "--ckpt_path", "last").stderr
    # Anywhere else it is not the user's own run, and its class is not imported on its word.
    shutil.copytree(run, tmp_path / "downloaded")
    refused = tinytf(tmp_path, "fit", "--ckpt_path", "downloaded/last.ckpt", code=2).stderr
    assert "is not of a run in checkpoint.dir" in refused
    assert "trainer.callbacks" in refused


def test_a_reader_that_has_seen_enough_is_no_failure_of_ours(tmp_path: Path) -> None:
    command = f"{sys.executable} -m tinytf config-schema | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("{\n", "", 128 + signal.SIGPIPE)


def test_an_older_checkpoint_branches_into_a_folder_of_its_own(
    workplace: Path, run_folder: Path, tinytf: Tinytf, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "checkpoints", tmp_path / "checkpoints", symlinks=True)
    run = tmp_path / "checkpoints" / "tiny" / "version_0"
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    old = next(path for path in run.glob("step-0000010-*.ckpt"))
    tinytf(tmp_path, "fit", "--ckpt_path", str(old))
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before
    first, second = (
        torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (run, run.parent / "version_1")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_last_with_no_run_yet_starts_afresh_and_says_so(workplace: Path, tinytf: Tinytf, tmp_path: Path) -> None:
    flags = ("--config", str(workplace / "configs" / "tiny.yaml"), "--trainer.max_steps", "2")
    said = tinytf(tmp_path, "fit", *flags, "--ckpt_path", "last").stderr
    assert "starting fresh" in said
    assert (tmp_path / "checkpoints" / "tiny" / "version_0" / "last.ckpt").exists()


def test_predict_prints_the_loss_of_each_window(workplace: Path, run_folder: Path, tinytf: Tinytf) -> None:
    out = tinytf(workplace, "predict", "--ckpt_path", "last").stdout
    windows = [json.loads(line) for line in out.splitlines()]
    tokens = sum(window["tokens"] for window in windows)
    mean = sum(window["loss"] * window["tokens"] for window in windows) / tokens
    (logged,) = (row["val/loss"] for row in rows(run_folder) if row["step"] == 30 and "val/loss" in row)
    assert mean == pytest.approx(logged, rel=1e-5)
    assert windows[0]["perplexity"] == pytest.approx(math.exp(windows[0]["loss"]))


def test_predict_on_two_devices_is_refused(workplace: Path, tinytf: Tinytf) -> None:
    flags = ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    said = tinytf(workplace, "predict", "--ckpt_path", "last", *flags, code=2).stderr
    assert "trainer.devices 2: predict writes the windows in their order" in said


def test_generate_streams_the_same_text_for_the_same_seed(workplace: Path, tinytf: Tinytf) -> None:
    flags = ("generate", "--ckpt_path", "best.ckpt", "--prompt", "The ", "--max_new_tokens", "80", "--seed", "1")
    shutil.copy(workplace / "checkpoints" / "tiny" / "version_0" / "best.ckpt", workplace / "best.ckpt")
    first, second = tinytf(workplace, *flags).stdout, tinytf(workplace, *flags).stdout
    assert first == second
    assert first.startswith("The ")
    assert len(first) >= 80


def test_inspect_tells_what_a_checkpoint_is(workplace: Path, tinytf: Tinytf) -> None:
    told = json.loads(tinytf(workplace, "inspect", "--ckpt_path", "last", "--json").stdout)
    assert told["checkpoint"]["step"] == 30
    assert "torch" in json.dumps(told)


def test_runs_lists_the_run(workplace: Path, tinytf: Tinytf) -> None:
    (run,) = (r for r in json.loads(tinytf(workplace, "runs", "--json").stdout) if r["name"] == "tiny")
    assert run["state"] == "finished"
    assert run["step"] == 30


def test_help_and_version_answer_without_torch(workplace: Path, tinytf: Tinytf) -> None:
    import subprocess
    import sys

    code = "import sys; from tinytf.cli.main import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for flag in ("--help", "--version"):
        assert subprocess.run([sys.executable, "-c", code, flag], capture_output=True).returncode == 0
