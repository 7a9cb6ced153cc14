"""``hf://``: what is fetched, in which order, and which commit is recorded. The hub is a stand-in."""

from __future__ import annotations

import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.cli.wrong_input import says
from tests.weights.folders import write_config, write_folder
from tinytf.cli.inspect import base_facts
from tinytf.errors import UserError
from tinytf.weights.base import open_base

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A repository, and the calls that were made to it."""

    def __init__(self, folder: Path) -> None:
        self.repository, self.cache = folder / "repository", folder / "snapshots" / COMMIT
        write_folder(self.repository, shards=2)
        (self.repository / "pytorch_model.bin").write_bytes(b"a pickle")
        (self.repository / "modeling.py").write_text("raise SystemExit")
        (self.repository / "onnx").mkdir()
        (self.repository / "onnx" / "x.safetensors").write_bytes(b"another format")
        self.calls: list[tuple[str, str | None]] = []

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        self.calls.append((repo_id, revision))
        self.cache.mkdir(parents=True, exist_ok=True)
        for file in self.repository.rglob("*"):
            name = file.relative_to(self.repository).as_posix()
            taken = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if file.is_file() and taken and not any(fnmatch(name, pattern) for pattern in ignore_patterns):
                shutil.copy(file, self.cache / name)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_the_commit_is_recorded_and_nothing_but_data_is_fetched(hub: Hub) -> None:
    base = open_base("hf://owner/name?revision=main")
    # The weights are of the commit that the config was of, whatever the branch is by then.
    assert hub.calls == [("owner/name", "main"), ("owner/name", COMMIT)]
    assert {file.suffix for file in hub.cache.iterdir()} == {".json", ".safetensors"}
    assert not (hub.cache / "x.safetensors").exists()
    assert base.identity["revision"] == COMMIT
    assert base.identity["name"] == "hf://owner/name?revision=main"
    assert base.build(base.config).config.d_model == 64


def test_a_model_that_cannot_be_used_is_refused_before_its_weights_are_fetched(hub: Hub) -> None:
    write_config(hub.repository, hidden_act="gelu")
    with pytest.raises(UserError, match=r"model.base hf://owner/name: config.json: hidden_act is 'gelu'"):
        open_base("hf://owner/name")
    assert len(hub.calls) == 1


def test_a_look_fetches_no_weights(hub: Hub) -> None:
    assert base_facts("hf://owner/name")["base"]["revision"] == COMMIT
    assert not list(hub.cache.glob("*.safetensors"))


def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot find the requested files.\nCheck the connection.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError) as caught:
        open_base("hf://user:secret@owner/name")
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        open_base("hf://owner/name")
    says(str(caught.value), ["model.base hf://owner/name: Cannot find the requested files. Check the connection."])


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'tinytf\[finetune\]'"):
        open_base("hf://owner/name")
