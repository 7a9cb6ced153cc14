"""`tinytf fit --model.base`: what the config takes over, and a run that no longer needs its base."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.data.shards import documents
from tests.weights.folders import TEMPLATE, write_folder
from tinytf.cli.config.parser import CommandLine
from tinytf.cli.main import main
from tinytf.data.datamodule import TextDataModule
from tinytf.model.config import RopeScaling
from tinytf.training.lightning_module import LanguageModel
from tinytf.training.loss import token_losses
from tinytf.weights.checkpoint import load_model, read_checkpoint

RUN = Path("checkpoints/tuned/version_0")
FIT = [
    "fit", "--model.base", "base", "--data.corpus", "text.txt", "--data.seq_len", "32", "--data.batch_size", "2",
    "--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1",
    "--checkpoint.every_n_steps", "2", "--checkpoint.keep_last", "9", "--checkpoint.save_top_k", "0",
    "--model.schedule.warmup_steps", "1", "--model.dropout", "0.1", "--tracking.tensorboard", "false",
    "--name", "tuned", "--data.cache_dir", "cache",
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(documents(60)))
    return tmp_path


def last(run: Path) -> dict[str, Any]:
    return read_checkpoint(run / "last.ckpt")


def test_a_killed_run_is_resumed_bitwise_without_its_base(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_folder(here / "base")
    assert main(FIT) == 0
    whole = last(RUN)
    assert not torch.equal(whole["state_dict"]["model.norm.weight"], base.norm.weight)

    # As it is after a kill between steps 2 and 4, on a machine that has no base.
    shutil.rmtree("base")
    killed = RUN.with_name("version_1")
    shutil.copytree(RUN, killed, symlinks=True)
    (killed / "step-0000004.ckpt").unlink()
    capsys.readouterr()
    assert main([*FIT, "--ckpt_path", str(killed), "--model.base", "other"]) == 2
    assert "model.base is other here but base in" in capsys.readouterr().err
    # The same command starts and resumes.
    assert main([*FIT, "--ckpt_path", str(killed)]) == 0
    assert "resuming from step 2 of 4" in capsys.readouterr().err
    resumed = last(killed)
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    states = [content["optimizer_states"][0]["state"] for content in (whole, resumed)]
    for number, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][number][name]))

    # It keeps saying what it began from; and opens without it.
    identity = whole["tinytf"]["base"]
    assert identity == resumed["tinytf"]["base"]
    assert (identity["name"], identity["kind"], len(identity["sha256"])) == ("base", "qwen3", 64)
    start = json.loads((RUN / "metrics.jsonl").read_text().splitlines()[0])
    assert start["base"] == identity
    assert load_model(killed / "last.ckpt").chat_template == TEMPLATE
    assert LanguageModel.load_from_checkpoint(killed / "last.ckpt").base_identity == identity
    assert main(["validate", "--ckpt_path", str(killed / "last.ckpt")]) == 0
    assert main(["inspect", "--ckpt_path", str(killed / "last.ckpt")]) == 0
    assert identity["sha256"] in capsys.readouterr().out


def test_config_yaml_is_complete_and_repeats_the_run(here: Path) -> None:
    write_folder(here / "base")
    assert main([*FIT, "--model.max_seq_len", "48"]) == 0
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    wanted = {"d_model": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "d_ff": 96, "max_seq_len": 48}
    assert wanted.items() <= config["model"].items()
    assert (config["model"]["base"], config["data"]["tokenizer"], config["data"]["vocab_size"]) == ("base", "base", 300)
    assert main(["fit", "--config", str(RUN / "config.yaml"), "--name", "again"]) == 0
    first, second = (last(Path("checkpoints", name, "version_0"))["state_dict"] for name in ("tuned", "again"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_run_that_goes_on_from_a_strangers_has_a_config_that_starts_again(here: Path) -> None:
    """Whether its tokenizer was a base's or a file's: neither is opened, so that the checkpoint alone has it."""
    write_folder(here / "theirs")
    tokenizer = ["--model.base", "null", "--data.tokenizer", "theirs/tokenizer.json", "--model.d_model", "64",
                 "--model.n_layers", "1", "--model.n_heads", "2", "--model.max_seq_len", "32"]  # fmt: skip
    flags = [*FIT[3:], "--trainer.max_steps", "2"]
    for name, argv in (("base", ["--model.base", "theirs"]), ("file", tokenizer)):
        assert main(["fit", *flags, *argv, "--name", name]) == 0
        shutil.copy(Path("checkpoints", name, "version_0/last.ckpt"), f"{name}.ckpt")
    shutil.rmtree("theirs")
    for name in ("base", "file"):
        again = ["--data.corpus", "text.txt", "--data.cache_dir", "cache", "--trainer.max_steps", "3", "--name", "mine"]
        assert main(["fit", "--ckpt_path", f"{name}.ckpt", *again, "--name", f"my_{name}"]) == 0
        path = Path("checkpoints", f"my_{name}", "version_0/config.yaml")
        config = yaml.safe_load(path.read_text())
        assert (config["model"]["base"], config["data"]["tokenizer"]) == (f"{name}.ckpt", "base")
        assert main(["fit", "--config", str(path)]) == 0
        first, second = (last(path.parent.with_name(f"version_{n}")) for n in (0, 1))
        assert second["tinytf"]["tokenizer"] == first["tinytf"]["tokenizer"]
        assert second["tinytf"]["base"]["name"] == f"{name}.ckpt"
        # And it is resumed without that file.
        Path(f"{name}.ckpt").unlink()
        assert main(["fit", "--ckpt_path", str(path.parent.with_name("version_1")), "--trainer.max_steps", "4"]) == 0


def test_a_checkpoint_and_a_bundle_and_a_run_are_bases(here: Path) -> None:
    from tests.export.small_model import save_checkpoint
    from tinytf.weights.base import open_base
    from tinytf.weights.checkpoint import LoadedModel

    model = write_folder(here / "bundle/huggingface")
    Path("bundle/export.json").write_text("{}")
    opened = open_base("bundle")
    loaded = LoadedModel(model, opened.tokenizer, {"data": {}, "chat_template": TEMPLATE})
    save_checkpoint(here / "run/step-0000007.ckpt", loaded)
    Path("run/best.ckpt").write_text("step-0000007.ckpt")  # As where links cannot be made.
    for place in ("bundle", "run", "run/step-0000007.ckpt"):
        found = LanguageModel(base=place)
        assert all(torch.equal(value, found.model.state_dict()[key]) for key, value in model.state_dict().items())
        assert found.base_identity["name"] == place


def test_plan_and_inspect_know_a_base(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(here / "base")
    assert main(["inspect", "--ckpt_path", "base", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["base"]["kind"], found["model"]["head_dim"], found["tokenizer"]["size"]) == ("qwen3", 32, 300)
    assert found["tokenizer"]["chat_template"] == TEMPLATE
    Path("base/model.safetensors").unlink()  # A plan needs no weights.
    assert main(["plan", *FIT[1:], "--tflops", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["parameters"] == found["model"]["parameters"]


def test_a_base_is_evaluated_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_folder(here / "base").eval()
    data = ["--data.corpus", "text.txt", "--data.seq_len", "32", "--data.batch_size", "2", "--data.cache_dir", "cache"]
    assert main(["validate", "--model.base", "base", *data]) == 0
    said = float(re.search(r"val/loss\s+│\s+([\d.]+)", capsys.readouterr().out)[1])  # type: ignore[index]
    module = TextDataModule(corpus="text.txt", seq_len=32, batch_size=2, cache_dir="cache")
    module.use_tokenizer(Path("base/tokenizer.json").read_text())
    with torch.no_grad():
        batches = [(token_losses(model, *batch).sum(), (batch[1] >= 0).sum()) for batch in module.val_dataloader()]
    assert said == pytest.approx(float(sum(loss for loss, _ in batches) / sum(count for _, count in batches)), rel=1e-5)
    assert main(["validate", *data]) == 2
    assert "needs --ckpt_path" in capsys.readouterr().err


def test_a_context_is_lengthened_with_a_stated_scaling_which_a_stranger_gets_too(here: Path) -> None:
    write_folder(here / "base")
    scaling = {"rope_type": "linear", "factor": 2.0}
    longer = ["--model.max_seq_len", "128", "--model.rope_scaling", json.dumps(scaling), "--data.seq_len", "100"]
    assert main([*FIT, "--trainer.max_steps", "1", *longer]) == 0
    again = CommandLine("fit", ["--config", str(RUN / "config.yaml")])
    # Elsewhere it is a stranger's: it names no base, and its rotation is its numbers'.
    shutil.copy(RUN / "last.ckpt", "theirs.ckpt")
    theirs = CommandLine("validate", ["--ckpt_path", "theirs.ckpt", "--data.corpus", "text.txt"])
    for cli in (again, theirs):
        assert cli.model.config.max_seq_len == 128
        assert cli.model.config.rope_scaling == RopeScaling("linear", 2.0)
        assert cli.model.config.vocab_size == 320
    assert again.base is not None
    assert theirs.base is None
    assert theirs.config.model.base is None
