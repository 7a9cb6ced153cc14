"""Samples: written where they are due, the same each time, and without a trace in training."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from torch._dynamo.testing import CompileCounter

from tests.run.toy_run import CHARACTERS, Dies, ToyData, ToyModule, fit, records
from tinytf.errors import UserError
from tinytf.run.callbacks.journal import JournalCallback
from tinytf.run.callbacks.samples import PROMPT_TOKENS, Samples
from tinytf.run.loggers import build_loggers


def sampled(folder: Path, samples: Samples, **run: object) -> list[dict[str, object]]:
    fit(folder, [JournalCallback({}), samples], val_every=3, **run)  # type: ignore[arg-type]
    return records(folder, "sample")


def test_each_nth_validation_and_each_prompt(tmp_path: Path) -> None:
    settings = Samples(every_n_validations=2, prompts=["ab", "c"], max_new_tokens=40)
    events = sampled(tmp_path, settings)
    assert [(event["step"], event["index"], event["prompt"]) for event in events] == [
        (6, 0, "ab"), (6, 1, "c"), (12, 0, "ab"), (12, 1, "c"),
    ]  # fmt: skip
    for event in events:
        assert len(str(event["text"])) == 40  # Past max_seq_len 32: it slides.
        assert set(str(event["text"])) <= set(CHARACTERS)


def test_by_default_each_validation_has_samples(tmp_path: Path) -> None:
    assert [event["step"] for event in sampled(tmp_path, Samples(max_new_tokens=2))] == [3, 6, 9, 12]


def test_without_prompts_the_validation_text_begins(tmp_path: Path) -> None:
    (event, *_) = sampled(tmp_path, Samples(every_n_validations=1, max_new_tokens=3))
    data = ToyData()
    assert event["prompt"] == data.tokenizer.decode(data.split("val")[:PROMPT_TOKENS].tolist())


def test_training_is_that_of_a_run_without_samples(tmp_path: Path) -> None:
    plain, watched = ToyModule(), ToyModule()
    plain.model.dropout.p = watched.model.dropout.p = 0.1  # Draws from the global generator at each step.
    torch.manual_seed(1)
    fit(tmp_path / "a", [], module=plain, val_every=3)
    torch.manual_seed(1)
    sampled(tmp_path / "b", Samples(every_n_validations=1, max_new_tokens=5), module=watched)
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    assert watched.model.training == plain.model.training


def test_samples_after_a_resume_are_those_of_an_unbroken_run(tmp_path: Path) -> None:
    settings = Samples(every_n_validations=2, max_new_tokens=10)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    wanted = sampled(whole, settings)
    with pytest.raises(RuntimeError):
        sampled(broken, settings, dies=Dies(8, RuntimeError("killed")))
    found = sampled(broken, settings, resume=broken / "5.ckpt")
    assert [(event["step"], event["text"]) for event in found] == [(event["step"], event["text"]) for event in wanted]


def frames_compiled(folder: Path, samples: Samples | None) -> int:
    torch._dynamo.reset()
    counter = CompileCounter()
    module = ToyModule()
    for block in module.model.layers:
        block.compile(backend=counter)
    fit(folder, [JournalCallback({}), *([samples] if samples else [])], module=module, val_every=3)
    return int(counter.frame_count)


def test_samples_compile_nothing(tmp_path: Path) -> None:
    without = frames_compiled(tmp_path / "a", None)
    assert without > 0
    # Their lengths, their cache and their mode are not training's: each would be another compilation.
    assert frames_compiled(tmp_path / "b", Samples(every_n_validations=1, max_new_tokens=5)) == without


def test_a_model_that_diverged_is_a_warning_and_no_crash(tmp_path: Path) -> None:
    module = ToyModule()
    with torch.no_grad():
        module.model.embed_tokens.weight.fill_(float("nan"))
    assert not sampled(tmp_path, Samples(every_n_validations=2), module=module, best=False)
    assert any("no sample" in record["message"] for record in records(tmp_path, "warning"))


def test_prompts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.samples\.prompts: .*Z"):
        sampled(tmp_path, Samples(prompts=["abZ"]))
    with pytest.raises(UserError, match="empty"):
        sampled(tmp_path, Samples(prompts=[""]))


def test_tensorboard_shows_them_by_step_through_a_resume(tmp_path: Path) -> None:
    settings = Samples(every_n_validations=1, prompts=["ab"], max_new_tokens=4)

    def attempt(resume: int | None, dies: Dies | None = None) -> None:
        loggers = build_loggers(tmp_path, "id", resume)
        path = tmp_path / f"{resume}.ckpt" if resume else None
        sampled(tmp_path, settings, loggers=loggers, resume=path, dies=dies)

    with pytest.raises(RuntimeError):
        attempt(None, Dies(8, RuntimeError("killed")))
    # TensorBoard reads event files in the order of their names, which begin with the second they were made in.
    time.sleep(1.0)
    attempt(5)
    events = EventAccumulator(str(tmp_path)).Reload()
    texts = events.Tensors("sample/0/text_summary")
    assert [event.step for event in texts] == [3, 6, 9, 12]
    assert all(event.tensor_proto.string_val[0].startswith(b"```\nab") for event in texts)
