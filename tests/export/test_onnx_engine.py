"""An exported graph writes what its checkpoint writes."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.export.small_model import Exported, save_checkpoint
from tinytf.cli import generate
from tinytf.data.tokenizer import encode
from tinytf.errors import UserError
from tinytf.export.formats.onnx import save
from tinytf.export.formats.onnx.runtime import OnnxEngine, bundled_tokenizer
from tinytf.generation.batching import Batch
from tinytf.generation.decoding import TransformerEngine, decode
from tinytf.generation.sampling import Sampling
from tinytf.weights.checkpoint import LoadedModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

GRAPHS = ["model_kv.onnx"]


@pytest.mark.parametrize("file", GRAPHS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("prompt", ["Now is", "Made glorious summer by this sun of York; and all the clouds that"])
def test_same_seed_same_text_past_the_context_too(
    file: str, temperature: float, prompt: str, exported: Exported, loaded: LoadedModel
) -> None:
    """200 tokens on a context of 48 slide several times; the second prompt is longer than the context."""
    engine = OnnxEngine(exported.folder / file)
    ids = encode(bundled_tokenizer(exported.folder / file), prompt.replace("and", "And"))
    sampling = Sampling(temperature)
    texts = [
        torch.stack(list(islice(decode(each, ids, sampling, [1, 2]), 200)))
        for each in (engine, TransformerEngine(loaded.model))
    ]
    assert torch.equal(*texts)


@pytest.mark.parametrize("file", GRAPHS)
def test_past_the_context_it_refuses_in_words(file: str, exported: Exported) -> None:
    engine = OnnxEngine(exported.folder / file)
    engine.prefill(torch.zeros(1, 48, dtype=torch.long))
    with pytest.raises(ValueError, match="a sequence of 49 tokens is past max_seq_len 48"):
        engine.step(torch.zeros(1, dtype=torch.long))


CACHED = ["model_kv.onnx", "model_kv.int8.onnx", "model_kv.int4.onnx"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("file", CACHED)
def test_texts_that_join_and_leave_are_those_they_are_alone(file: str, threads: int, exported: Exported) -> None:
    """Prompts of other lengths, some past the context of 48, that end at other times."""
    engine, draw = OnnxEngine(exported.folder / file, threads), torch.Generator().manual_seed(3)
    jobs = [
        (torch.randint(0, engine.vocab_size, (length,), generator=draw).tolist(), sampling, seed, count)
        for seed, (length, sampling, count) in enumerate(
            [(3, 0.0, 30), (60, 0.8, 9), (1, 0.8, 60), (20, 0.0, 12), (47, 0.0, 20), (7, 0.8, 25)]
        )
    ]
    batch, waiting, running, texts, most = Batch(engine), list(enumerate(jobs)), {}, {}, 0
    while waiting or running:
        if waiting:  # One joins at each step.
            number, (prompt, temperature, seed, _) = waiting.pop(0)
            row, _ = batch.add(prompt, Sampling(temperature), seed)
            running[row], texts[number] = number, []
        most = max(most, len(running))
        for row, token in zip(batch.rows, batch.draw(), strict=True):
            texts[running[row]].append(token)
        ended = [row for row, number in running.items() if len(texts[number]) == jobs[number][3]]
        batch.remove(ended)
        running = {row: number for row, number in running.items() if row not in ended}
        batch.advance()
    assert most == 6
    for number, (prompt, temperature, seed, count) in enumerate(jobs):
        alone = islice(decode(OnnxEngine(exported.folder / file), prompt, Sampling(temperature), [seed]), count)
        assert texts[number] == torch.cat(list(alone)).tolist(), number


@pytest.mark.parametrize("file", CACHED)
def test_rows_are_one_batch_unless_they_would_round_each_other(file: str, exported: Exported) -> None:
    """The dynamic scale of 8 bits is one for all rows; blocks of 4 bits have their own."""
    engine = OnnxEngine(exported.folder / file)
    alone = engine.join(torch.arange(9), every=True)
    engine.keep([])
    engine.join(torch.arange(20, 23))
    joined = engine.join(torch.arange(9), every=True)
    assert torch.equal(joined, alone), "a row is read alone before it joins"
    runs = []
    run = engine._graph.read
    engine._graph.read = lambda tokens, *rest: (runs.append(len(tokens)), run(tokens, *rest))[1]  # type: ignore[method-assign]
    engine.step(torch.tensor([4, 5]))
    assert runs == ([1, 1] if "int8" in file else [2])


def test_rounded_graphs_run_too(exported: Exported, loaded: LoadedModel) -> None:
    prompt = torch.arange(20)[None]
    wanted = TransformerEngine(loaded.model).prefill(prompt)
    for file in ("model_kv.int8.onnx", "model_kv.int4.onnx"):
        logits = OnnxEngine(exported.folder / file).prefill(prompt)
        assert logits.shape == wanted.shape
        assert 0 < float((logits - wanted).abs().max()) < float(wanted.std()) * 2


def test_a_graph_without_a_cache_is_refused(exported: Exported) -> None:
    with pytest.raises(UserError, match="it has no key-value cache"):
        OnnxEngine(exported.folder / "model.onnx")


def test_other_files_are_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give a \.onnx file"):
        OnnxEngine(exported.folder / "model.pt2")
    with pytest.raises(UserError, match="No such file"):
        OnnxEngine(tmp_path / "model_kv.onnx")
    broken = tmp_path / "model_kv.onnx"
    broken.write_bytes((exported.folder / "model_kv.onnx").read_bytes()[:1000])
    with pytest.raises(UserError, match="it is not an ONNX file") as caught:
        OnnxEngine(broken)
    assert "\n" not in str(caught.value)


def test_a_model_of_someone_else_is_refused(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.folder / "model_kv.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "model_kv.onnx")
    with pytest.raises(UserError, match="it was not exported by tinytf"):
        OnnxEngine(tmp_path / "model_kv.onnx")


def test_without_its_tokenizer_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer"):
        bundled_tokenizer(tmp_path / "model_kv.onnx")


@pytest.mark.parametrize(
    "flags", [["--seed", "5"], ["--temperature", "0"], ["--num_samples", "2", "--json"], ["--interactive"]]
)
def test_generate_writes_the_same_from_either(
    flags: list[str], exported: Exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for source in (["--ckpt_path", str(exported.checkpoint)], ["--model", str(exported.folder / "model_kv.onnx")]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Now\n")))  # Read by --interactive alone.
        assert generate.run([*source, "--device", "cpu", "--prompt", "Now is", *flags]) == 0
        texts.append(capsys.readouterr())
    assert texts[0].out == texts[1].out
    assert ("\nNow" in texts[0].out) == (flags == ["--interactive"])
    assert texts[0].out.startswith("Now is") or "--json" in flags
    assert "past max_seq_len 48" in texts[1].err


@pytest.mark.parametrize("stated", [{}, {"start_token": 5}], ids=["end of text", "stated"])
def test_an_empty_prompt_starts_where_the_checkpoint_starts(
    stated: dict[str, int],
    exported: Exported,
    loaded: LoadedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the token that training stated, else from end-of-text; the file says which."""
    entry = {"config": {"name": "trial"}, "data": {"corpus": "a test", **stated}}
    trained = replace(loaded, entry=entry)
    checkpoint = save_checkpoint(tmp_path / "best.ckpt", trained)
    # The model is the exported one: its graph is not traced again, its metadata is written anew.
    save(onnx.load(exported.folder / "model_kv.onnx"), tmp_path / "model_kv.onnx", trained)
    loaded.tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = []
    for source in (["--ckpt_path", str(checkpoint)], ["--model", str(tmp_path / "model_kv.onnx")]):
        assert generate.run([*source, "--device", "cpu", "--max_new_tokens", "30"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert OnnxEngine(tmp_path / "model_kv.onnx").start_token == stated.get("start_token", 0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give one of --ckpt_path and --model"),
        (["--ckpt_path", "a", "--model", "b"], "give one of --ckpt_path and --model"),
        (["--model", "b.onnx"], "No such file"),
        (["--model", "b.onnx", "--device", "cuda"], "runs on the CPU here"),
    ],
)
def test_generate_refuses_in_one_line(flags: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        generate.run(flags)
