"""Bundles and files from strangers: every mutation is one line or a failed row, and nothing outside is touched."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.export.small_model import Exported, save_checkpoint
from tinytf.cli import generate
from tinytf.cli.export import run as run_export
from tinytf.cli.verify import run as run_verify
from tinytf.data.config import CorpusConfig
from tinytf.errors import UserError
from tinytf.export.folder import publish, staging_folder
from tinytf.export.formats.torch_programs import PT2, TORCHSCRIPT
from tinytf.export.parity import cases, check
from tinytf.utils.files import sha256_of
from tinytf.weights.checkpoint import LoadedModel, load_model

NASTY: list[Any] = [
    None, True, -1, 0, 5.5, 10**400, float("nan"), float("inf"), "", "../victim", "/etc/passwd", "huggingface",
    "a\0b", "\u202e\x1b[31m", "x" * 5000, [], {}, [[]], {"file": "../victim"}, ["../victim"], {"../victim": "0" * 64},
]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(loaded: LoadedModel, export: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = save_checkpoint(tmp_path_factory.mktemp("home") / "run" / "best.ckpt", loaded)
    assert export(checkpoint, "huggingface,pt2,torchscript") == 0
    return checkpoint.parent / "export"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and index of a JSON value, by its path."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield (*path, key)
        yield from places(child, (*path, key))


def mutations(content: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """The same ones in every run: a value replaced or removed, a key renamed, one to three times."""
    chance = random.Random(0)
    while count:
        count -= 1
        changed = copy.deepcopy(content)
        for _ in range(chance.randint(1, 3)):
            place = chance.choice(list(places(changed)))
            holder = changed
            for key in place[:-1]:
                holder = holder[key]
            match chance.randrange(4):
                case 0:
                    del holder[place[-1]]
                case 1 if isinstance(holder, dict):
                    holder[str(chance.choice(NASTY))] = holder.pop(place[-1])
                case _:
                    holder[place[-1]] = copy.deepcopy(chance.choice(NASTY))
        yield changed


def snapshot(folder: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


def outcome(command: Callable[[], int]) -> int:
    """The exit code; anything but a code or one line is our bug, and raises."""
    refused: list[str] = []
    try:
        return command()
    except UserError as error:
        refused.append(str(error))
    assert "\n" not in refused[0]
    return 2


def test_no_manifest_reads_changes_or_deletes_what_is_outside(
    bundle: Path, export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """250 mutated manifests, in a copied run with files of the user's around and within the bundle."""
    home = tmp_path / "home"
    shutil.copytree(bundle.parent.parent, home)
    folder = home / "run" / "export"
    for place in (home, home / "run", folder):
        (place / "victim").write_text("years of work")
    good = json.loads((folder / "export.json").read_text())
    opened: list[Path] = []
    seen_by = sha256_of
    for module in ("tinytf.export.manifest", "tinytf.export.verify"):
        monkeypatch.setattr(f"{module}.sha256_of", lambda path: opened.append(path) or seen_by(path))
    for writer in (PT2, TORCHSCRIPT):
        monkeypatch.setattr(type(writer), "open_runner", lambda *_: pytest.fail("opened without --trust"))
    monkeypatch.setattr("tinytf.export.bundle.load_model", cache(load_model))  # The checkpoint is one and the same.
    # What is written and measured is tested elsewhere; a whole comparison takes a second.
    monkeypatch.setattr(type(TORCHSCRIPT), "write", lambda self, loaded, path, base: path.write_bytes(b"a program"))
    monkeypatch.setattr(check.ParityCheck, "run", lambda self, format, path: check.CheckResult(format, "passed", path))
    monkeypatch.setattr(check.ParityCheck, "baseline_speed", lambda self, results: check.Speed(1.0, 1.0))
    codes = set()
    for changed in mutations(good, 250):
        (folder / "export.json").write_text(json.dumps(changed))
        before = snapshot(home)
        codes.add(outcome(lambda: run_verify([str(folder)])))
        assert snapshot(home) == before
        code = outcome(lambda: export(home / "run" / "best.ckpt", "torchscript"))
        codes.add(code)
        after = snapshot(home)
        if code == 2:
            assert after == before
        outside = {name for name in {*before, *after} if not name.startswith("run/export/")}
        assert {name: before.get(name) for name in outside} == {name: after.get(name) for name in outside}
        assert after["run/export/victim"] == b"years of work"
        if code != 2:  # It was made again: put the old one back.
            shutil.rmtree(folder)
            shutil.copytree(bundle, folder)
            (folder / "victim").write_text("years of work")
    assert codes >= {0, 2}, "some mutations are harmless, some are refused"
    staging = str(folder.with_name(".export.tmp-"))
    assert all(path.is_relative_to(folder) or str(path).startswith(staging) for path in opened)
    assert not any("victim" in str(path) or ".." in path.parts for path in opened)


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "export"
    shutil.copytree(bundle, folder)
    return folder


def state(folder: Path, name: str) -> None:
    """Record a file's sum in the manifest, as a stranger would."""
    content = json.loads((folder / "export.json").read_text())
    for entry in (*content["artifacts"], {"sha256": content["runtime_files"]}):
        if name in entry["sha256"]:
            entry["sha256"][name] = sha256_of(folder / name)
    (folder / "export.json").write_text(json.dumps(content))


DEEP = "[" * 100_000


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "text", [DEEP, "{", "[]", '{"auto_map": {"AutoConfig": "evil--evil.Config"}}'], ids=lambda text: text[:9]
)
def test_configs_of_a_huggingface_folder_are_not_handed_to_transformers_unread(
    file: str, text: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if (file, text[:2]) == ("generation_config.json", '{"'):
        pytest.skip("only model.generate reads it, and nothing here calls that")
    (copied / "huggingface" / file).write_text(text)
    state(copied, f"huggingface/{file}")
    assert outcome(lambda: run_verify([str(copied), "--json"])) in (1, 2)
    failed = json.loads(capsys.readouterr().out)["failed"]
    assert [entry["name"] for entry in failed] == ["huggingface"]


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**6},
        {"vocab_size": 10**9},
        {"model_type": "mistral"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"auto_map": {"AutoModelForCausalLM": "evil--evil.Model"}},
        {"tie_word_embeddings": False},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        {"architectures": ["EvilForCausalLM"]},
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"a_later_release": ["evil/kernel"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_config_that_is_not_the_models_is_not_loaded(
    change: dict[str, Any], copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    path = copied / "huggingface" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    state(copied, "huggingface/config.json")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert run_verify([str(copied)]) == 1
    assert f"its {next(iter(change))} is not the model's" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"n_layers": 10**6},
        {"d_model": 10**8},
        {"max_seq_len": 10**12},
        {"vocab_size": "65"},
        {"n_heads": True},
        {"d_ff": []},
        {"tie_embeddings": False},
        {"head_dim": 10**6},
        {"rope_scaling": {"rope_type": "llama3", "factor": "2"}},
        {"rope_scaling": [[]]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_model_that_is_not_that_of_the_weights_is_not_built(
    change: dict[str, Any], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((copied / "export.json").read_text())
    content["model"] |= change
    (copied / "export.json").write_text(json.dumps(content))
    monkeypatch.setattr("tinytf.export.verify.Transformer", lambda config: pytest.fail("built"))
    with pytest.raises(UserError, match=r"it is not the model of export\.json"):
        run_verify([str(copied)])


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': (100000000000, 100000000000), }"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n(S'true'\ntR."),
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': (-1, 2), }", b"\0" * 8),
        npy("{" * 100),
        npy("__import__('os')"),
    ],
)
def test_an_evaluation_set_is_read_with_bounds(content: bytes, copied: Path) -> None:
    (copied / "evaluation.npy").write_bytes(content)
    assert outcome(lambda: run_verify([str(copied)])) == 2


def fill(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
@pytest.mark.parametrize(
    "name",
    ["export.json", "evaluation.npy", "tokenizer.json", "huggingface/model.safetensors", "huggingface/config.json"],
)
def test_what_is_no_regular_file_is_not_read(name: str, kind: str, copied: Path, export: Callable[..., int]) -> None:
    fill(copied / name, kind)
    assert outcome(lambda: run_verify([str(copied)])) in (1, 2)
    assert outcome(lambda: export(copied.parent.parent / "run" / "best.ckpt", "torchscript")) == 2


def test_an_artifact_folder_that_is_a_link_is_not_walked(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / "huggingface")
    (copied / "huggingface").symlink_to("/")
    (copied / "reference.safetensors").write_bytes(b"")
    assert outcome(lambda: run_verify([str(copied)])) == 2


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="makes links")
def test_a_lock_that_is_a_link_is_not_opened(loaded: LoadedModel, export: Callable[..., int], tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "run" / "best.ckpt", loaded)
    (tmp_path / "victim").write_text("years of work")
    (tmp_path / "run" / ".export.lock").symlink_to(tmp_path / "victim")
    before = (tmp_path / "victim").stat().st_mtime_ns
    with pytest.raises(UserError, match="is a link, which tinytf does not make"):
        export(checkpoint, "torchscript")
    assert (tmp_path / "victim").read_text() == "years of work"
    assert (tmp_path / "victim").stat().st_mtime_ns == before


@pytest.mark.parametrize("place", ["", "a\0b", "x" * 5000, "~nosuch/x", "/dev/null", "/dev/null/x", "/proc/x", "/"])
@pytest.mark.parametrize("flag", ["--output_dir", "--text"])
def test_paths_of_every_odd_kind_are_one_line(flag: str, place: str, exported: Exported) -> None:
    flags = ["--ckpt_path", str(exported.checkpoint), "--formats", "torchscript", "--text", str(exported.text)]
    assert outcome(lambda: run_export([*flags, f"{flag}={place}"])) == 2
    assert outcome(lambda: run_verify([place])) == 2
    assert outcome(lambda: generate.run(["--model", place])) == 2


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-inf", "1e400", "1_000", "\u0661", "", " ", "0x1", "1e-3=2"])
def test_a_threshold_that_is_no_limit_is_refused_before_anything_is_read(value: str) -> None:
    flags = ["--threshold", f"int8.kl={value}"]
    with pytest.raises(UserError, match=r"--threshold int8\.kl="):
        run_export(["--ckpt_path", "none", *flags])
    with pytest.raises(UserError, match=r"--threshold int8\.kl="):
        run_verify(["none", *flags])
    with pytest.raises(UserError, match="a share from 0 to 1"):
        run_verify(["none", "--threshold", "int8.top1=1.5"])


def test_every_file_is_synced_before_the_bundle_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), sync(descriptor)))
    folder = tmp_path / "export"

    def checked(self: Path, target: Path) -> Path:
        if target == folder:
            files = [path for path in self.rglob("*") if path.is_file() and not path.is_symlink()]
            assert {path.stat().st_ino for path in (self, *files)} <= set(synced)
            assert len(files) == 3
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", checked)
    with staging_folder(folder) as staging:
        bundle = staging / "bundle"
        (bundle / "huggingface").mkdir(parents=True)
        for name in ("export.json", "model.onnx", "huggingface/model.safetensors"):
            (bundle / name).write_text("content")
        (bundle / "link").symlink_to("/dev/zero")
        publish(bundle, folder)
    assert (folder / "model.onnx").read_text() == "content"


def test_a_checkpoint_to_verify_against_that_is_no_file_is_one_line(copied: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    for place in (str(tmp_path / "pipe.ckpt"), "/dev/zero", str(tmp_path), "none", "a\0b"):
        assert outcome(lambda place=place: run_verify([str(copied), "--ckpt_path", place])) == 2


def test_a_strangers_words_do_nothing_to_the_terminal(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((copied / "export.json").read_text())
    content["name"] = content["evaluation"]["source"] = content["checkpoint"]["path"] = "\u202e\x1b]0;title\x07\r"
    (copied / "export.json").write_text(json.dumps(content))
    assert outcome(lambda: run_verify([str(copied)])) == 0
    printed = capsys.readouterr()
    assert all(mark.isprintable() or mark == "\n" for mark in printed.out + printed.err)


@pytest.mark.parametrize("key", ["corpus", "val_corpus", "test_corpus"])
@pytest.mark.parametrize("named", ["http://127.0.0.1:1/text.txt", "hf://owner/name", "secret.txt"])
def test_a_strangers_checkpoint_does_not_choose_what_text_is_opened(
    key: str, named: str, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only --text does; a cache_dir that it states is not made either."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("a line that no message may quote\n" * 99)
    data = {"corpus": "python-docs", key: named, "cache_dir": str(tmp_path / "chosen")}
    stranger = LoadedModel(loaded.model, loaded.tokenizer, {"config": {"data": data}}, 7)
    opened: list[CorpusConfig] = []

    def prepare(config: CorpusConfig, *_: Any) -> None:
        opened.append(config)
        raise UserError("opened")

    monkeypatch.setattr(cases, "prepare", prepare)
    with pytest.raises(UserError, match="is not opened because it says so: give held-out text with --text FILE"):
        cases.held_out_text(stranger, None, own=False)
    assert not opened
    with pytest.raises(UserError, match="opened"):
        cases.held_out_text(stranger, None, own=True)
    assert getattr(opened[0], key) == named


def test_a_strangers_cache_folder_is_not_used(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"corpus": "python-docs", "cache_dir": str(tmp_path / "chosen")}
    stranger = LoadedModel(loaded.model, loaded.tokenizer, {"config": {"data": data}}, 7)
    with pytest.raises(UserError):
        cases.held_out_text(stranger, None, own=False)
    assert not (tmp_path / "chosen").exists()
