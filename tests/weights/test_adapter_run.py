"""`tinytf fit --model.adapter`: small checkpoints that resume bitwise, open merged, and are of their base alone."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.data.shards import documents
from tests.run.test_lightning_callbacks import differences
from tests.run.toy_run import records
from tests.stress.killing import Instants, attempt
from tests.weights.folders import write_folder, write_tokenizer
from tinytf.cli.main import main
from tinytf.weights.checkpoint import load_model

RUN = Path("checkpoints/lora/version_0")
FIT = [
    "fit", "--model.base=base", "--data.corpus=text.txt", "--data.seq_len=32", "--data.batch_size=2", "--name=lora",
    "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2",
    "--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=2", "--checkpoint.keep_last=9",
    "--model.schedule.warmup_steps=1", "--model.dropout=0.1", "--tracking.tensorboard=false", "--data.cache_dir=cache",
    "--model.adapter.rank=3", "--model.adapter.dropout=0.1",
]  # fmt: skip
AVERAGED = ["--config=callbacks/averaging", "--trainer.callbacks.decay=0.5"]


def prepare(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text("\n".join(documents(60)))
    write_folder(folder / "base")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, and a run of an adapter on it that was not stopped."""
    import peft  # noqa: F401 - once, and not in each forked process: 7 s.

    folder = tmp_path_factory.mktemp("adapter")
    prepare(folder)
    assert attempt([*FIT, *AVERAGED], folder)[0] == 0, (folder / "attempts.log").read_text()
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def content(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)
    return found


def refused(argv: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert main(argv) == 2
    return capfd.readouterr().err.splitlines()[-1]


def test_killed_and_resumed_it_is_the_run_that_was_not(trained: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "killed")
    code, _ = attempt([*FIT, *AVERAGED], tmp_path / "killed", Instants(2 * 4, only="training_step"))
    assert code == -signal.SIGKILL
    assert attempt(["fit", "--ckpt_path=last"], tmp_path / "killed")[0] == 0
    whole, resumed = content(trained / RUN), content(tmp_path / "killed" / RUN)
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert differences(whole[key], resumed[key]) == []
    # The adapter alone, under names without a wrapper's, averaged or not.
    for key in ("state_dict", "current_model_state"):
        assert len(whole[key]) == 2 * 7 * 2
        assert "model.layers.0.self_attn.q_proj.lora_A.weight" in whole[key]
    assert whole["tinytf"]["adapter"]["rank"] == 3
    assert whole["tinytf"]["base"]["name"] == "base"
    assert all(value.abs().sum() > 0 for value in whole["state_dict"].values())


def test_it_opens_merged_and_exports_are_compared_with_it_unmerged(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model(RUN / "last.ckpt", own=True)
    tokens = torch.randint(loaded.model.config.vocab_size, (2, 16))
    with torch.inference_mode():
        merged, unmerged = loaded.model(tokens), loaded.reference(tokens)
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-5)
    assert "lora_A" in str(loaded.reference)
    assert "lora" not in str(loaded.model)
    (row,) = [row for row in records(RUN, "metrics") if "val/loss" in row and row["step"] == 4]
    capfd.readouterr()
    assert main(["validate", f"--ckpt_path={RUN / 'last.ckpt'}", "--trainer.limit_val_batches=2"]) == 0
    (measured,) = re.findall(r"val/loss *│ *([\d.]+)", capfd.readouterr().out)
    assert float(measured) == pytest.approx(row["val/loss"], rel=1e-5)
    assert main(["generate", "--ckpt_path=best", "--prompt=the", "--max_new_tokens=4"]) == 0
    assert main(["inspect", "--ckpt_path=best"]) == 0
    assert "rank" in capfd.readouterr().out.partition("\nadapter\n")[2]
    assert main(["export", "--ckpt_path=best", "--formats=huggingface"]) == 0
    assert "passed" in capfd.readouterr().out
    # A bundle is a whole model: it may be a base again.
    assert main([*FIT, f"--model.base={RUN / 'export'}", "--trainer.max_steps=1", "--name=again"]) == 0


def test_a_strangers_adapter_opens_no_base_that_it_names(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copy(RUN / "last.ckpt", "sent.ckpt")
    generate = ["generate", "--ckpt_path=sent.ckpt", "--prompt=the", "--max_new_tokens=2"]
    assert "give the base model as --base" in refused(generate, capfd)
    assert main([*generate, "--base=base"]) == 0
    validate = ["validate", "--ckpt_path=sent.ckpt", "--data.corpus=text.txt", "--trainer.limit_val_batches=1"]
    assert "give again model.base (base)" in refused(validate, capfd)
    assert main([*validate, "--model.base=base"]) == 0
    shutil.copytree("base", "other")
    weights = load_file("other/model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, "other/model.safetensors", metadata={"format": "pt"})
    for argv in ([*generate, "--base=other"], [*validate, "--model.base=other"]):
        assert "its adapter was trained on base (sha256 " in refused(argv, capfd)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["fit", "--ckpt_path=last", "--model.adapter.rank=5"], "model.adapter.rank is 5 here but 3 in"),
        (["fit", "--ckpt_path=last", "--model.adapter.alpha=7"], "an adapter's weights were trained for what they are"),
        ([*FIT, "--model.adapter=true"], "model.adapter: expected keys and values or null, got true; give them as"),
        (
            ["fit", "--ckpt_path=last", "--model.adapter.targets=[q_proj]"],
            "model.adapter.targets is ['q_proj'] here but",
        ),
        (["fit", "--ckpt_path=last", "--model.adapter=null"], "holds an adapter, and is not resumed as the other"),
        (
            ["fit", "--ckpt_path=last", "--model.base=elsewhere"],
            "model.base elsewhere: there is no such file or folder",
        ),
        ([*FIT, "--model.base=null"], "model.adapter is trained beside the frozen weights of a pretrained model"),
        ([*FIT, "--model.freeze=['norm.*']"], "model.freeze: under model.adapter all of the base is frozen"),
        ([*FIT, "--model.adapter.rank=0"], "model.adapter.rank is 0, but must be at least 1"),
        ([*FIT, "--model.adapter.rank=1e12"], "model.adapter.rank is 1000000000000, but must be at most model.d_model"),
        ([*FIT, f"--model.base={RUN}"], "it holds an adapter alone: merge it by tinytf export"),
        (["generate", "--ckpt_path=best", "--prompt=a", "--base=text.txt"], "text.txt"),
        (["generate", "--model=base", "--prompt=a", "--base=base"], "--base is of a --ckpt_path with an adapter"),
        (["verify", "base", "--base=base"], "--base is of a --ckpt_path with an adapter"),
    ],
)
def test_what_contradicts_is_refused_by_name(
    argv: list[str], says: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(argv, capfd)


Change = Callable[[dict[str, Any]], Any]
CONTRADICTIONS: list[tuple[Change, str]] = [
    # In the entry, by which the weights are built.
    (lambda entry: entry.pop("base"), "it holds an adapter, and does not say of which base"),
    (lambda entry: entry.update(base="base"), "it holds an adapter, and does not say of which base"),
    (lambda entry: entry["base"].update(name=None), "it holds an adapter, and does not say of which base"),
    (lambda entry: entry.pop("adapter"), "its weights are not those of the model that it describes"),
    (lambda entry: entry.update(adapter=3), "model.adapter is 3, but expected keys and values"),
    (lambda entry: entry["adapter"].update(x=3), "model.adapter has the key 'x'"),
    (lambda entry: entry["adapter"].update(rank=5), "lora_A.weight is [3, 96], not [5, 96]"),
    (lambda entry: entry["model"].update(vocab_size=400), "its entry is not of this base: the tokenizer has 400"),
]
ONLY_IN_THE_CONFIG: list[tuple[Change, str]] = [
    # By which a run or an evaluation is built; `generate` does not read it.
    (lambda model: model.update(adapter=None), "its config has model.adapter None, but its weights are of {'rank': 3"),
    (lambda model: model.update(adapter="x"), "model.adapter is 'x', but expected keys and values"),
    (lambda model: model["adapter"].update(rank="x"), "model.adapter.rank is 'x', but must be a number"),
    (lambda model: model["adapter"].update(rank=5), "its config has model.adapter.rank 5, but its weights are of 3"),
    (lambda model: model["adapter"].update(alpha=5.0), "its config has model.adapter.alpha 5.0, but its weights are"),
    (lambda model: model.update(rope_theta=5.0), "its config has model.rope_theta 5.0, but its weights are of 10000.0"),
]


def test_a_strangers_entry_that_does_not_fit_is_one_line(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = ["--data.corpus=text.txt", "--trainer.limit_val_batches=1", "--model.base=base"]
    fit = [*base, "--trainer.callbacks=null"]
    commands = {"generate": ["--base=base", "--prompt=a", "--max_new_tokens=1"], "validate": base, "fit": fit}
    cases = [(change, says, commands) for change, says in CONTRADICTIONS]
    cases += [(lambda entry, change=change: change(entry["config"]["model"]), says, {"validate": base, "fit": fit})
              for change, says in ONLY_IN_THE_CONFIG]  # fmt: skip
    cases += [(lambda entry: entry["model"].update(rope_theta=5.0), "its entry is not of this base: model.rope_theta",
               {"generate": commands["generate"]})]  # fmt: skip
    for change, says, argvs in cases:
        sent = content(RUN)
        change(sent["tinytf"])
        torch.save(sent, "sent.ckpt")
        for command, argv in argvs.items():
            line = refused([command, "--ckpt_path=sent.ckpt", *argv], capfd)
            assert line.startswith("tinytf: error: checkpoint sent.ckpt: ")
            assert says in line


def test_a_base_with_another_tokenizer_is_another(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tokenizer(here / "base", 290)
    for argv in (["fit", "--ckpt_path=last"], ["generate", "--ckpt_path=best", "--prompt=a"]):
        assert "its adapter was trained with another tokenizer than model.base base has now" in refused(argv, capfd)


def test_a_run_whose_base_has_gone_says_so_and_resumes_where_it_lies_now(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("base").rename("moved")
    assert "model.base base: there is no such file or folder" in refused(["fit", "--ckpt_path=last"], capfd)
    assert main(["fit", "--ckpt_path=last", "--model.base=moved", "--trainer.max_steps=5"]) == 0
