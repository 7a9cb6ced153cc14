"""`tinytf prepare` does what `fit` would, ahead, and understands the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.shards import documents, write_jsonl
from tinytf.cli.config.parser import parser_of
from tinytf.cli.config.resume import refuse_changes
from tinytf.cli.main import main
from tinytf.cli.prepare import BATCHES, CORPUS
from tinytf.data import TextDataModule
from tinytf.errors import UserError

TEXTS = documents(200)


def test_fit_finds_what_it_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    config = tmp_path / "config.yaml"
    config.write_text(f"trainer:\n  max_steps: 3\ndata:\n  corpus: {corpus}\n  batch_size: 2\n  seq_len: 16\n")
    flags = ["--config", str(config), "--data.cache_dir", str(tmp_path / "cache"), "--data.val_fraction", "0.2"]
    assert main(["prepare", *flags, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    monkeypatch.setattr("tinytf.data.tokens.shards.ShardTokenizer.tokenize", lambda *_: pytest.fail("tokenized again"))
    data = TextDataModule(
        corpus=str(corpus), val_fraction=0.2, batch_size=2, seq_len=16, cache_dir=str(tmp_path / "cache")
    )
    data.prepare_data()
    data.setup()
    assert said == {**data.fingerprint, "dtype": "uint16", "folder": str(data.prepared.store.folder)}
    assert main(["prepare", *flags]) == 0
    said_plainly = capsys.readouterr().out
    assert "200 documents" in said_plainly
    assert str(data.prepared.store.folder) in said_plainly


def test_it_needs_no_lightning_and_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from tinytf.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "print(code, [name for name in ('torch', 'lightning', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    corpus = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    command = [sys.executable, "-c", program, "prepare", "--data.corpus", str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("data:\n  corpos: a", [], r"config\.yaml:2: unknown key data\.corpos; did you mean data\.corpus\?"),
        ("data:\n  seed: 3", [], r"config\.yaml:2: data\.seed is not a setting of tinytf: use seed_everything"),
        ("data: text", [], r"config\.yaml:1: data: expected keys and values, got a str"),
        ("data:\n  vocab_size: many", [], r"data\.vocab_size: expected an integer, got many"),
        ("", ["--data.corpos", "a"], r"unknown key data\.corpos; did you mean data\.corpus\?"),
        ("", ["--data.batch_size", "3"], r"data\.batch_size changes nothing that is prepared"),
        ("", ["--model.d_model", "3"], r"model\.d_model is not for tinytf prepare"),
        ("", ["--config", "nope.yaml"], r"--config nope\.yaml: No such file"),
    ],
)
def test_what_it_does_not_understand_is_named(content: str, flags: list[str], message: str, tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    import re

    (tmp_path / "config.yaml").write_text(content)
    assert main(["prepare", "--config", str(tmp_path / "config.yaml"), *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said


def test_it_knows_every_key_of_fits_section_data() -> None:
    keys = {key for key in parser_of("fit").get_defaults().keys() if key.startswith("data.")}  # noqa: SIM118
    assert {*CORPUS, *BATCHES} == keys - {"data.seed"}


def test_a_resumed_run_keeps_its_text() -> None:
    saved: dict[str, Any] = {
        "data": {"split_by": "auto", "text_field": "text", "bpe_sample_bytes": 100_000_000},
        "model": {"schedule": {"class_path": "tinytf.training.Linear"}},
    }
    for key, value in (("split_by", "document"), ("text_field", "body"), ("bpe_sample_bytes", 7)):
        changed = {**saved, "data": {**saved["data"], key: value}}
        with pytest.raises(UserError, match=rf"data\.{key} is {value} here"):
            refuse_changes("fit", changed, saved, Path("a.ckpt"))
