"""What inspect says of a checkpoint, and of two."""

import json
import subprocess
import sys

import pytest
import torch

from tests.cli.tiny_checkpoint import PROVENANCE, SETTINGS, write_checkpoint
from tinytf.cli import inspect
from tinytf.errors import UserError
from tinytf.model import Transformer, TransformerConfig

RUN = "checkpoints/toy/version_0"
CALLBACKS = {
    "callbacks": {
        "TQDMProgressBar": {},
        "BestCheckpoints{'monitor': 'val/loss'}": {
            "monitor": "val/loss",
            "best_model_score": torch.tensor(1.25),
            "current_score": torch.tensor(2.5),
            "best_k_models": {
                f"{RUN}/step-0000004-val_loss-1.2500.ckpt": torch.tensor(1.25),
                f"{RUN}/step-0000007-val_loss-1.5000.ckpt": torch.tensor(1.5),
            },
        },
    }
}


def printed(capsys, *argv):
    assert inspect.run(["--ckpt_path", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_it_says_what_a_checkpoint_is(tmp_path, capsys):
    path = write_checkpoint(tmp_path / "a.ckpt", **CALLBACKS)
    lines = [" ".join(line.split()) for line in printed(capsys, path).splitlines()]
    expected = (
        f"file {path}", "step 7", "val/loss 1.5", "best val/loss 1.25", "d_model 32", "n_kv_heads 2",
        "trainer.max_steps 9", "model.optimizer.lr 0.02", "sha256 00ff", "split_tokens.train 90", "tokenizer.kind char",
        "git.commit abc123", "git.dirty true", "command tinytf fit --config toy.yaml",
        "time 2026-01-31T12:00:00.000000Z",
        "hardware.cpu A CPU", "packages.torch 2.13.0",
    )  # fmt: skip
    assert [line for line in expected if line not in lines] == []


def test_json_is_strict_and_counts_the_parameters(tmp_path, capsys):
    odd = {"name": "toy", "trainer": {"a": float("nan"), "b": [float("inf"), -float("inf")]}}
    path = write_checkpoint(tmp_path / "a.ckpt", "bpe", config=odd)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(printed(capsys, path, "--json"), parse_constant=refuse)
    assert found["config"]["trainer"] == {"a": "NaN", "b": ["Infinity", "-Infinity"]}
    assert found["data"]["tokenizer"]["kind"] == "BPE"
    assert found["data"]["tokenizer"]["size"] == found["model"]["vocab_size"] == 290
    model = Transformer(TransformerConfig(290, d_model=32, n_heads=2, n_layers=2, max_seq_len=32))
    assert found["model"]["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert found["checkpoint"]["val/loss"] is None, "a checkpoint without a validation has no loss to tell"


def test_a_loss_of_another_step_is_not_this_ones(tmp_path, capsys):
    path = write_checkpoint(tmp_path / "a.ckpt", step=6, **CALLBACKS)
    found = json.loads(printed(capsys, path, "--json"))
    assert found["checkpoint"]["val/loss"] is None
    assert found["checkpoint"]["best val/loss"] == 1.25


def test_the_difference_is_one_line_each_in_groups(tmp_path, capsys):
    old = write_checkpoint(tmp_path / "a.ckpt")
    new = write_checkpoint(
        tmp_path / "b.ckpt",
        step=9,
        config={**SETTINGS, "trainer": {"max_steps": 20}, "extra": True},
        provenance={**PROVENANCE, "git": {**PROVENANCE["git"], "diff": ""}, "packages": {"torch": "2.14.0"}},
    )
    text = printed(capsys, old, "--diff", new)
    groups = {block.splitlines()[0]: block.splitlines()[1:] for block in text.split("\n\n")}
    assert groups.keys() == {"checkpoint", "config", "code", "environment"}
    assert groups["checkpoint"] == ["  step: 7 -> 9"]
    assert groups["config"] == ["  trainer.max_steps: 9 -> 20", "  extra: (none) -> true"]
    assert groups["environment"] == ["  packages.torch: 2.13.0 -> 2.14.0"]
    assert len(groups["code"]) == 1
    assert groups["code"][0].startswith("  git.diff: (2 lines, 19 characters")
    changes = json.loads(printed(capsys, old, "--diff", new, "--json"))
    assert changes["config"]["trainer.max_steps"] == [9, 20]
    assert changes["code"]["git.diff"][0] == "-old line\n+new line"


def test_a_checkpoint_does_not_differ_from_its_copy(tmp_path, capsys):
    paths = [write_checkpoint(tmp_path / name) for name in ("a.ckpt", "b.ckpt")]
    assert printed(capsys, paths[0], "--diff", paths[1]) == "no difference\n"


def test_a_damaged_second_file_is_named(tmp_path):
    path, other = write_checkpoint(tmp_path / "a.ckpt"), tmp_path / "b.ckpt"
    other.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"b\.ckpt: it is not a whole checkpoint"):
        inspect.run(["--ckpt_path", str(path), "--diff", str(other)])


def test_lightning_is_not_imported(tmp_path):
    path = write_checkpoint(tmp_path / "a.ckpt")
    code = (
        "import sys; from tinytf.cli.main import main; assert main(sys.argv[1:]) == 0; "
        "assert 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, "inspect", "--ckpt_path", path], check=True, capture_output=True)


@pytest.mark.parametrize(
    "state", [{"best_k_models": {3: 1}}, {"best_k_models": [1]}, {"best_model_score": b"x"}, {"best_model_score": {}}]
)
def test_a_callback_of_that_name_that_is_not_ours_has_no_losses(state, tmp_path, capsys):
    path = write_checkpoint(tmp_path / "a.ckpt", callbacks={"Other": {"monitor": "val/loss", **state}})
    found = json.loads(printed(capsys, path, "--json"))["checkpoint"]
    assert (found["val/loss"], found["best val/loss"]) == (None, None)
