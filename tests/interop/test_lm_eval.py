"""lm-evaluation-harness on a task of one's own: the loss that it finds is the model's."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from tests.export.small_model import TEXT
from tests.interop.conftest import Bundle
from tests.interop.environments import LONGEST, python_client
from tinytf.data.tokenizer import begin_of_text_id

TEXTS = ["Now is the winter", "of our discontent\nMade", "glorious summer", "by this sun of York;\n"]
PACKAGES = ("lm_eval==0.4.13", "transformers>=5", "torch==2.13.0", "accelerate")


def bits_per_byte(bundle: Bundle, start: int) -> float:
    """Of all texts together, each after this token."""
    bits = 0.0
    for text in TEXTS:
        ids = torch.tensor([start, *bundle.ids(text)])
        with torch.inference_mode():
            bits += float(cross_entropy(bundle.loaded.model(ids[None, :-1])[0], ids[1:], reduction="sum")) / math.log(2)
    return bits / sum(len(text.encode()) for text in TEXTS)


def measured(folder: Path, tmp_path: Path, flags: str = "") -> float:
    """What ``lm_eval`` prints of a local task on a Hugging Face folder."""
    python = python_client("lm-eval", *PACKAGES)
    rows = tmp_path / "texts.jsonl"
    rows.write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    task = {
        "task": "held_out", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }  # fmt: skip
    (tmp_path / "held_out.yaml").write_text(yaml.safe_dump(task))
    command = [
        str(python), "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "3",
        "--model_args", f"pretrained={folder},dtype=float32{flags}", "--tasks", "held_out",
        "--include_path", str(tmp_path), "--output_path", str(tmp_path / "results"),
    ]  # fmt: skip
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": ""}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, env=offline, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-4000:]
    (results,) = (tmp_path / "results").rglob("*.json")
    found: float = json.loads(results.read_text())["results"]["held_out"]["bits_per_byte,none"]
    return found


def test_the_loss_is_the_models_without_a_flag(bundle: Bundle, tmp_path: Path) -> None:
    start = begin_of_text_id(bundle.loaded.tokenizer)
    assert start is not None
    assert measured(bundle.folder / "huggingface", tmp_path) == pytest.approx(bits_per_byte(bundle, start), rel=1e-5)


def test_characters_without_documents_start_from_the_line_feed_of_the_cards_command(
    plain: Bundle, tmp_path: Path
) -> None:
    """No character may be a special token: transformers would leave it out of its texts."""
    assert set(TEXT) == set(plain.loaded.tokenizer.get_vocab())
    start = plain.ids("\n")[0]
    flags = f",prefix_token_id={start}"
    found = measured(plain.folder / "huggingface", tmp_path, flags)
    assert found == pytest.approx(bits_per_byte(plain, start), rel=1e-5)
    assert flags in (plain.folder / "huggingface" / "README.md").read_text(encoding="utf-8")
