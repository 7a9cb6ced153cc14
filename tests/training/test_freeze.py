"""model.freeze: what it names is in no optimizer and stays as it was; the rest trains as it would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.stress.campaign import prepare
from tests.training.test_lightning_module import CONFIG
from tinytf.cli.main import main
from tinytf.errors import UserError
from tinytf.model import Transformer, TransformerConfig
from tinytf.training.lightning_module import LanguageModel
from tinytf.training.loss import mean_loss
from tinytf.training.optim.groups import flops_per_token, freeze, parameter_groups

SIZES = TransformerConfig(vocab_size=100, d_model=64, n_heads=2, n_layers=3, d_ff=128, max_seq_len=32)


def test_a_pattern_that_names_nothing_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"no parameter is called 'embed_token.\*'; the nearest are embed_tokens.\*"):
        LanguageModel(**CONFIG, freeze=["norm.*", "embed_token.*"])
    with pytest.raises(UserError, match="nothing to train"):
        LanguageModel(**CONFIG, freeze=["*"])


@pytest.mark.parametrize("patterns", [[], ["embed_tokens.*"], ["embed_tokens.*", "layers.[01].*"], ["layers.1.*"]])
def test_flops_are_those_that_torch_counts(patterns: list[str]) -> None:
    model = Transformer(SIZES)
    freeze(model, patterns)
    tokens = torch.randint(SIZES.vocab_size, (1, 32))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # The fused kernel is not counted.
        mean_loss(model, tokens, tokens).backward()
    # By the paper's rule the norms' weights count as if they were in products.
    assert flops_per_token(model, 32) == pytest.approx(counter.get_total_flops() / 32, rel=0.01)
    if not patterns:
        assert flops_per_token(model, 32) == SIZES.flops_per_token(32)


@pytest.mark.parametrize("optimizer", ["tinytf.training.MuonAdamW", "torch.optim.AdamW"])
def test_a_run_leaves_what_is_frozen_as_it_was_and_resumes(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    few = ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--checkpoint.every_n_steps=2"]
    # All of the blocks' matrices, so that Muon has none.
    names = ["--model.freeze=['embed_tokens.*', '*_proj.*']", f"--model.optimizer={optimizer}"]
    assert main(["fit", "--config=tiny", *few, *names, "--tracking.norms.every_n_steps=5"]) == 0
    run = tmp_path / "checkpoints/tiny/version_0"
    early, late = (torch.load(run / f"step-{step:07d}.ckpt", weights_only=True) for step in (2, 4))
    for name, before in early["state_dict"].items():
        if "embed_tokens" in name or "_proj" in name:
            assert torch.equal(before, late["state_dict"][name]), name
    assert not torch.equal(early["state_dict"]["model.norm.weight"], late["state_dict"]["model.norm.weight"])
    assert [len(group["params"]) for group in late["optimizer_states"][0]["param_groups"]] == [0, 0, 9]
    assert main(["fit", "--ckpt_path=last", "--trainer.max_steps=5"]) == 0
    capfd.readouterr()
    assert main(["fit", "--ckpt_path=last", "--trainer.max_steps=6", "--model.freeze=null"]) == 2
    assert "model.freeze is None here but ['embed_tokens.*', '*_proj.*'] in" in capfd.readouterr().err


def test_frozen_parameters_are_in_no_group() -> None:
    model = Transformer(SIZES)
    freeze(model, ["layers.0.*", "norm.weight"])
    grouped = {id(p) for group in parameter_groups(model) for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(grouped) < len([*model.parameters()])
