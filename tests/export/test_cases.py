"""What artifacts are compared on, how far they may be off, and how long the command takes to start."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.small_model import Exported
from tinytf.errors import UserError
from tinytf.export.formats import FORMATS
from tinytf.export.parity.cases import EXPORT_SHAPE, MOST_IDS, Evaluation, chunked, held_out, shapes, vocabulary
from tinytf.export.parity.compare import ParityMetrics
from tinytf.export.parity.thresholds import THRESHOLDS, breaches, with_overrides
from tinytf.model import TransformerConfig


def test_windows_are_held_out_text_with_targets_one_on() -> None:
    evaluation = Evaluation.from_ids(np.arange(1000), "numbers", 100, max_tokens=450)
    assert evaluation.windows.shape == (4, 101)
    assert (evaluation.windows.diff(dim=1) == 1).all()
    assert (evaluation.windows[0, 0], evaluation.windows[-1, -1]) == (0, 999)
    assert evaluation.tokens == 400
    case, targets = next(held_out(evaluation))
    assert torch.equal(case.tokens + 1, targets)


@pytest.mark.parametrize("length", [2, 50, 101])
def test_short_texts_give_short_windows(length: int) -> None:
    evaluation = Evaluation.from_ids(np.arange(length), "numbers", 100)
    assert evaluation.windows.shape == (1, min(length, 101))


def test_no_text_is_an_error() -> None:
    with pytest.raises(UserError, match="too few"):
        Evaluation.from_ids(np.arange(1), "nothing", 100)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    evaluation = Evaluation.from_ids(np.arange(1000), "numbers", 100)
    evaluation.save(tmp_path / "evaluation.npy")
    assert (
        Evaluation.load(tmp_path / "evaluation.npy", "numbers", TransformerConfig(1000, max_seq_len=100)).sha256
        == evaluation.sha256
    )


@pytest.mark.parametrize("max_seq_len", [1, 2, 3, 48, 256])
def test_shapes_reach_from_one_token_to_the_context_and_are_not_the_exported_one(max_seq_len: int) -> None:
    evaluation = Evaluation.from_ids(np.arange(2000), "numbers", max_seq_len)
    cases = list(chain(shapes(evaluation, max_seq_len), chunked(evaluation, max_seq_len)))
    sizes = [tuple(case.tokens.shape) for case in cases]
    assert EXPORT_SHAPE not in sizes
    assert (1, 1) in sizes
    assert (1, max_seq_len) in sizes
    assert {1, 8} <= {batch for batch, _ in sizes}
    assert max(length for _, length in sizes) == max_seq_len
    assert all(sum(case.chunks) == case.tokens.shape[1] for case in cases if case.chunks)
    if max_seq_len >= 48:
        assert any(case.chunks and set(case.chunks[1:]) == {1} for case in cases), "decode by single tokens"
        assert any(case.chunks and len(case.chunks) > 1 and case.chunks[1] > 1 for case in cases), "chunked prefill"


def test_pretrained_models_are_compared_on_no_more_than_a_core_can_do() -> None:
    """Of a vocabulary of 49,152 and a context of 8,192, with a whole row still."""
    assert sum(case.tokens.numel() for case in vocabulary(49_152, 8192)) == MOST_IDS
    evaluation = Evaluation.from_ids(np.arange(20_000), "numbers", 8192)
    cases = [*shapes(evaluation, 8192), *chunked(evaluation, 8192), *(case for case, _ in held_out(evaluation))]
    assert max(case.tokens.numel() for case in cases) == 8192
    assert {1, 3, 8} <= {len(case.tokens) for case in cases}


@pytest.mark.parametrize(("vocab_size", "max_seq_len"), [(1, 8), (67, 48), (64, 48), (300, 7), (129, 256)])
def test_every_id_of_the_vocabulary_is_an_input_once(vocab_size: int, max_seq_len: int) -> None:
    cases = list(vocabulary(vocab_size, max_seq_len))
    ids = torch.cat([case.tokens.flatten() for case in cases])
    assert sorted(ids.tolist()) == list(range(vocab_size))
    assert all(case.tokens.shape[1] <= max_seq_len for case in cases)


def perfect(**changes: float) -> ParityMetrics:
    numbers = {
        "max_abs": 0.0, "relative": 0.0, "top1": 1.0, "kl": 0.0, "kl_max": 0.0, "loss": 1.0, "reference_loss": 1.0,
        "tokens": 100, "greedy": 1.0, "greedy_tokens": 10, "cases": 5,
    }  # fmt: skip
    return ParityMetrics(**(numbers | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", list(THRESHOLDS))
def test_every_threshold_bites(precision: str) -> None:
    assert breaches(perfect(), THRESHOLDS[precision]) == []
    for name, limit in THRESHOLDS[precision].items():
        worse = {"loss": 1.0 + 2 * limit} if name == "loss" else {name: limit * (0.99 if limit >= 0.9 else 2)}
        if name == "relative":
            worse = {name: limit * 2}
        assert [breach.split()[0] for breach in breaches(perfect(**worse), THRESHOLDS[precision])] == [name]


def test_a_lower_loss_is_as_wrong_as_a_higher_one() -> None:
    assert breaches(perfect(loss=0.9), THRESHOLDS["int8"])


def test_overrides_leave_the_table_alone() -> None:
    assert with_overrides(["int8.kl=0.5"])["int8"]["kl"] == 0.5
    assert THRESHOLDS["int8"]["kl"] == 5e-4


def test_the_screen_shows_the_table_and_nothing_of_the_libraries(exported: Exported, tmp_path: Path) -> None:
    """In a process of its own, where they are imported for the first time; Lightning is not imported at all."""
    code = (
        "import sys\nfrom tinytf.cli import export, verify\n"
        "export.parser().format_help()\nassert 'torch' not in sys.modules, 'the help waits for torch'\n"
        "from tinytf.export.parity import runner\nrunner.REPEATS, runner.NEW = 1, 4\n"
        f"argv = ['--ckpt_path', {str(exported.checkpoint)!r}, '--text', {str(exported.text)!r}]\n"
        f"argv += ['--output_dir', {str(tmp_path / 'out')!r}, '--formats', 'torchscript,huggingface']\n"
        f"code = export.run(argv) or verify.run(['--trust', {str(tmp_path / 'out')!r}])\n"
        "assert 'lightning' not in sys.modules, 'lightning'\nraise SystemExit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not_ours(done.stderr) == []
    lines = done.stdout.splitlines()
    rows = ["format", "(checkpoint)", "torchscript", "huggingface", "torchscript:"]
    assert [line.split()[0] for line in lines[1:6]] == rows
    assert len(lines) == 12


def test_writing_onnx_is_silent_too(exported: Exported) -> None:
    assert not_ours(exported.said) == []


def not_ours(stderr: str) -> list[str]:
    """Lines that are no progress of the command's."""
    steps = tuple(f"{name}: " for name in FORMATS)
    ours = (*steps, "wrote ", "comparing with the weights", "next:", "  ")
    return [line for line in stderr.splitlines() if not line.startswith(ours)]
