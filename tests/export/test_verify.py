"""`tinytf verify`: the same check later, elsewhere, without the run."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.export.small_model import EVERYTHING, TEMPLATE, Exported, chat_model, save_checkpoint, small_model
from tinytf.cli import generate
from tinytf.cli.verify import run
from tinytf.data.tokenizer import OLD_ANY_CHARACTER
from tinytf.errors import UserError
from tinytf.export import formats
from tinytf.export.formats import FORMATS
from tinytf.export.formats.onnx import WithCache
from tinytf.export.formats.torch_programs import TORCHSCRIPT, TorchScript
from tinytf.export.parity.cases import Evaluation
from tinytf.export.parity.check import ParityCheck
from tinytf.export.parity.thresholds import with_overrides
from tinytf.utils.files import sha256_of
from tinytf.weights.checkpoint import LoadedModel


@pytest.fixture
def bundle(loaded: LoadedModel, export: Callable[..., int], tmp_path: Path) -> Path:
    """A folder with two artifacts, next to its checkpoint."""
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "torchscript,huggingface") == 0
    return checkpoint.parent / "export"


def verified(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([str(folder), "--json", "--trust", *flags])
    return code, json.loads(capsys.readouterr().out)


def test_the_whole_bundle_passes_again(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    code, content = verified(exported.folder, capsys)
    assert code == 0
    assert content["verified_against"] == "the weights in huggingface/model.safetensors"
    for before, after in zip(exported.content["artifacts"], content["artifacts"], strict=True):
        assert after["status"] == before["status"]
        assert after["sha256"] == before["sha256"]
        if "measured" in before:
            assert after["measured"] == pytest.approx(before["measured"], rel=1e-6, abs=1e-9)


def test_every_property_and_the_chat_template_pass_again_without_the_checkpoint(
    export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", chat_model(**EVERYTHING, n_layers=1))
    folder = checkpoint.parent / "export"
    formats = "torchscript,pt2" + (",onnx-kv" if not FORMATS["onnx-kv"].missing("writing") else "")
    assert export(checkpoint, formats) == 0
    assert "lm_head.weight" in load_file(folder / "reference.safetensors")
    assert export(checkpoint, "huggingface") == 0
    checkpoint.unlink()
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    code, content = verified(folder, capsys)
    assert code == 0
    assert {entry["status"] for entry in content["artifacts"]} == {"passed"}
    answers = []
    for model in sorted({*folder.glob("model_kv.onnx"), folder / "huggingface"}):
        chat = ["--model", str(model), "--chat", "--prompt", "Now is", "--temperature", "0", "--max_new_tokens", "8"]
        assert generate.run(chat) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 1
    # Without the bundle's own, the one in huggingface/ is nobody's.
    stated = json.loads((folder / "export.json").read_text())
    del stated["runtime_files"]["chat_template.jinja"]
    (folder / "export.json").write_text(json.dumps(stated))
    failed = verified(folder, capsys)[1]["failed"]
    assert [entry["name"] for entry in failed] == ["huggingface"]
    assert "chat_template.jinja is not the model's" in failed[0]["reasons"][0]


def test_a_model_with_adapters_is_compared_as_it_was_trained(loaded: LoadedModel, evaluation: Evaluation) -> None:
    """What is exported has them merged; that the merge is right is part of what is measured."""
    trained = small_model(loaded.model.config.vocab_size)
    check = ParityCheck.of(replace(loaded, unmerged=lambda: trained), evaluation, with_overrides([]), 1)
    assert check.reference.model is trained
    assert ParityCheck.of(loaded, evaluation, with_overrides([]), 1).reference.model is loaded.model


def test_a_copied_folder_is_enough(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(bundle, elsewhere)
    shutil.rmtree(bundle.parent)
    code, content = verified(elsewhere, capsys)
    assert code == 0
    assert content["verified_against"].startswith("the weights in huggingface/model.safetensors")
    assert all(entry["measured"]["max_abs"] < 1e-4 for entry in content["artifacts"])


def test_without_huggingface_the_folder_still_has_its_weights(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "torchscript") == 0
    checkpoint.unlink()
    code, content = verified(checkpoint.parent / "export", capsys)
    assert code == 0
    assert content["verified_against"].startswith("the weights in reference.safetensors")


def test_a_changed_file_fails_and_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle / "model.torchscript.pt"
    path.write_bytes(path.read_bytes() + b"\0")
    code, content = verified(bundle, capsys)
    assert code == 1
    assert [entry["name"] for entry in content["failed"]] == ["torchscript"]
    assert content["failed"][0]["reasons"] == ["model.torchscript.pt changed since it was exported"]


def test_an_edited_model_card_is_no_damage_and_stays(
    bundle: Path, export: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    card = bundle / "huggingface" / "README.md"
    card.write_text("# Mine\n", encoding="utf-8")
    assert verified(bundle, capsys)[0] == 0
    for names in ("pt2", "huggingface"):  # Another format, and the folder itself.
        assert export(bundle.parent / "best.ckpt", names) == 0
        assert card.read_text(encoding="utf-8") == "# Mine\n"
    sections = (bundle / "README.md").read_text(encoding="utf-8")
    assert all(name in sections for name in ("model.torchscript.pt", "model.pt2", '"huggingface"'))
    assert "huggingface/README.md: it was edited, and stays as it is" in capsys.readouterr().err
    card.unlink()
    assert verified(bundle, capsys)[0] == 0
    assert export(bundle.parent / "best.ckpt", "huggingface") == 0
    assert "library_name: transformers" in card.read_text(encoding="utf-8")


def test_a_missing_file_fails(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "model.torchscript.pt").unlink()
    code, content = verified(bundle, capsys)
    assert (code, content["failed"][0]["reasons"]) == (1, ["model.torchscript.pt is gone"])


def test_a_wrong_model_under_a_right_sum_fails_by_its_logits(
    bundle: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the artifact had been exported wrong and its sum recorded: the check does not rest on sums."""
    from tinytf.utils.files import sha256_of

    path = bundle / "model.torchscript.pt"
    other = small_model(loaded.model.config.vocab_size)
    other.load_state_dict(loaded.model.state_dict())
    other.embed_tokens.weight.data[-1] = 0
    TORCHSCRIPT.write(LoadedModel(other, loaded.tokenizer), path, None)
    stated = json.loads((bundle / "export.json").read_text())
    next(entry for entry in stated["artifacts"] if entry["name"] == "torchscript")["sha256"][path.name] = sha256_of(
        path
    )
    (bundle / "export.json").write_text(json.dumps(stated))
    code, content = verified(bundle, capsys)
    assert code == 1
    assert content["failed"][0]["measured"]["max_abs"] > 0.1


def test_thresholds_are_those_of_the_export_unless_given(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(bundle, capsys, "--threshold", "fp32.max_abs=0")[0] == 1
    stated = json.loads((bundle / "export.json").read_text())
    stated["artifacts"][1]["thresholds"]["fp32"]["max_abs"] = 0.0
    (bundle / "export.json").write_text(json.dumps(stated))
    assert verified(bundle, capsys)[0] == 1


def test_each_artifact_keeps_the_thresholds_it_was_exported_with(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "huggingface", "--threshold", "fp32.max_abs=0.5") == 0
    assert export(checkpoint, "pt2", "--threshold", "fp32.max_abs=0.25") == 0
    content = verified(checkpoint.parent / "export", capsys)[1]
    assert [entry["thresholds"]["fp32"]["max_abs"] for entry in content["artifacts"]] == [0.5, 0.25]


def test_a_quantized_file_keeps_the_float32_limits_it_was_exported_with(
    loaded: LoadedModel,
    exported: Exported,
    export: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if FORMATS["onnx-int8"].missing("writing"):
        pytest.skip("onnx is not installed")
    # The model is the exported one, and tracing it takes seconds.
    graph = exported.folder / "model_kv.onnx"
    monkeypatch.setattr(WithCache, "write", lambda self, loaded, path, base: shutil.copy(graph, path))
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "onnx-int8", "--threshold", "fp32.max_abs=0.5") == 0
    assert export(checkpoint, "torchscript", "--threshold", "fp32.max_abs=0") == 0
    assert verified(checkpoint.parent / "export", capsys)[0] == 0


def test_a_graph_that_cannot_be_read_back_is_not_verified(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if FORMATS["onnx-int8"].missing("writing"):
        pytest.skip("onnx is not installed")
    there = formats.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name in ("onnx", "onnxscript") else there(name))
    code, content = verified(exported.folder, capsys)
    status = {entry["name"]: entry["status"] for entry in content["artifacts"]}
    assert code == 0
    assert status["huggingface"] == "passed"
    # Without onnx it cannot be seen whether a file keeps data elsewhere.
    assert status["onnx-kv"] == status["onnx-int8"] == status["onnx-int4"] == "not verified"


def test_a_bundle_of_the_first_version_passes_though_its_characters_have_the_pattern_of_one_engine(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = json.loads((bundle / "export.json").read_text())
    for name in ("tokenizer.json", "huggingface/tokenizer.json"):
        content = json.loads((bundle / name).read_text())
        content["pre_tokenizer"]["pattern"]["Regex"] = OLD_ANY_CHARACTER
        (bundle / name).write_text(json.dumps(content))
        sums = stated["runtime_files"] if "/" not in name else stated["artifacts"][1]["sha256"]
        assert sums[name] != sha256_of(bundle / name)
        sums[name] = sha256_of(bundle / name)
    (bundle / "export.json").write_text(json.dumps(stated))
    code, content = verified(bundle, capsys)
    assert (code, content["failed"]) == (0, [])


def test_another_bundled_tokenizer_the_graphs_is_named(bundle: Path) -> None:
    path = bundle / "tokenizer.json"
    path.write_text(path.read_text().replace("[", "[ ", 1))
    with pytest.raises(UserError, match=r"tokenizer\.json: it is not the file that was exported"):
        run([str(bundle)])


def test_an_artifact_that_does_not_load_fails_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(self: object, path: Path, threads: int) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(TorchScript, "open_runner", crash)
    code, content = verified(bundle, capsys)
    assert code == 1
    assert [entry["status"] for entry in content["artifacts"]] == ["passed"]
    assert content["failed"][0]["reasons"] == ["RuntimeError: no such operator"]


def test_a_folder_for_a_checkpoint_is_one_line(bundle: Path) -> None:
    (bundle.parent / "empty").mkdir()
    with pytest.raises(UserError, match="it is a folder, and it has no intact best checkpoint"):
        run([str(bundle), "--ckpt_path", str(bundle.parent / "empty")])


def test_a_bundle_for_a_checkpoint_is_sent_to_the_flag_that_takes_it(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"generate takes --model .*export/huggingface in place of --ckpt_path"):
        generate.run(["--ckpt_path", str(bundle)])
    (bundle / "model_kv.onnx").touch()
    with pytest.raises(UserError, match=r"generate takes --model .*export/model_kv\.onnx in place of --ckpt_path"):
        generate.run(["--ckpt_path", str(bundle)])


def test_another_checkpoint_is_refused(bundle: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other" / "best.ckpt", loaded, more=1)
    with pytest.raises(UserError, match="it is not the checkpoint that"):
        run([str(bundle), "--ckpt_path", str(other)])


def test_changed_weights_are_no_reference(bundle: Path) -> None:
    (bundle.parent / "best.ckpt").unlink()
    weights = bundle / "huggingface" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="it is not the file that was exported"):
        run([str(bundle)])
    weights.unlink()
    with pytest.raises(UserError, match="give --ckpt_path, the checkpoint to verify against"):
        run([str(bundle)])


def test_a_changed_evaluation_set_is_refused(bundle: Path) -> None:
    import numpy as np

    windows = np.load(bundle / "evaluation.npy")
    windows[0, 0] += 1
    np.save(bundle / "evaluation.npy", windows)
    with pytest.raises(UserError, match="not the evaluation set"):
        run([str(bundle)])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "it holds no export.json"),
        ("{", "it is not JSON"),
        ("[]", "not written by tinytf"),
        ('{"format": 1}', "its name is missing or not one of this tinytf"),
    ],
)
def test_a_folder_that_is_no_export_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "export.json").write_text(content)
    with pytest.raises(UserError, match=said):
        run([str(tmp_path)])


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        run([str(tmp_path / "nowhere")])


def test_an_export_of_a_later_tinytf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="upgrade tinytf"):
        run([str(tmp_path)])


class Touch:
    """Unpickled, it makes a file: a stranger's code would do worse."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_file_that_can_run_code_is_opened_only_with_trust(
    loaded: LoadedModel, export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "pt2,torchscript,huggingface") == 0
    folder, ran = checkpoint.parent / "export", tmp_path / "it-ran"
    plant(folder / "model.pt2", pickle.dumps(Touch(ran)))
    stated = json.loads((folder / "export.json").read_text())
    stated["artifacts"][0]["sha256"]["model.pt2"] = sha256_of(folder / "model.pt2")
    (folder / "export.json").write_text(json.dumps(stated))
    capsys.readouterr()
    assert run([str(folder), "--json"]) == 0
    status = {entry["name"]: entry["status"] for entry in json.loads(capsys.readouterr().out)["artifacts"]}
    assert status == {"pt2": "not verified", "torchscript": "not verified", "huggingface": "passed"}
    assert not ran.exists()
    assert run([str(folder), "--trust"]) == 1
    assert "model.pt2" in capsys.readouterr().out
    assert ran.exists(), "this test sees what it is about"


def plant(program: Path, payload: bytes) -> None:
    """Put a pickle in the place of the example inputs, which torch.export.load unpickles."""
    with zipfile.ZipFile(program) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(program, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, payload if "sample_inputs" in name else content)


def test_a_file_in_the_huggingface_folder_that_transformers_would_read_fails(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter_config.json names weights anywhere on the disk."""
    (bundle / "huggingface" / "adapter_config.json").write_text("{}")
    code, content = verified(bundle, capsys)
    assert code == 1
    assert "adapter_config.json is not a file that tinytf exports" in content["failed"][0]["reasons"][0]
