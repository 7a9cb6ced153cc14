"""A model that learned conversations answers them: `tinytf generate --chat`, from training to the end of the turn."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.cli.tiny_checkpoint import write_checkpoint
from tests.data.test_examples import CHATML, conversations, write
from tests.weights.folders import write_folder
from tinytf.cli.main import main
from tinytf.data.tokenizer import byte_pair_tokenizer, tokenizer_from_file
from tinytf.weights.checkpoint import read_checkpoint

TINY = ["--config", "tiny", "--data.corpus", "talk.jsonl", "--data.tokenizer", "tokenizer.json", "--data.seq_len", "48",
        "--data.batch_size", "4", "--trainer.max_steps", "90", "--trainer.val_check_interval", "90", "--name", "talk",
        "--data.val_corpus", "check.jsonl", "--data.cache_dir", "cache", "--tracking.tensorboard", "false",
        "--model.d_model", "32", "--model.n_layers", "1", "--model.n_heads", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned to answer "how are you" with "fine"."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = byte_pair_tokenizer(iter(["how are you fine user assistant " * 3]), 260)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    turns = [{"role": "user", "content": "how"}, {"role": "assistant", "content": "fine"}]
    write(folder / "talk.jsonl", [{"messages": turns * (1 + n % 2), "n": n} for n in range(60)])
    write(folder / "check.jsonl", [{"messages": turns}])
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        assert main(["fit", *TINY]) == 0
    return folder


def chat(folder: Path, capfd: pytest.CaptureFixture[str], *flags: str, code: int = 0) -> str:
    capfd.readouterr()
    found = main(["generate", "--ckpt_path", str(folder / "checkpoints/talk/version_0/last.ckpt"), "--chat",
                  "--temperature", "0", *flags])  # fmt: skip
    assert found == code
    said = capfd.readouterr()
    return said.err if code else said.out


def test_it_answers_and_ends_where_the_turn_ends(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert chat(folder, capfd, "--prompt", "how") == "fine\n"
    report = json.loads(chat(folder, capfd, "--prompt", "how", "--json"))
    assert (report["prompt"], report["text"], report["finish"]) == ("how", "fine", "end_of_turn")


def test_lines_and_answers_are_one_conversation(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    from tinytf.generation.conversation import Conversation

    ask = Conversation.ask
    monkeypatch.setattr(Conversation, "ask", lambda self, text: asked.append(ask(self, text)) or asked[-1])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"how\nhow\n")))
    assert chat(folder, capfd, "--interactive") == "fine\nfine\n"
    first, second = asked
    assert len(second) > 2 * len(first) - 5
    assert second[: len(first)] == first


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--chat: there is no message to answer"),
        (["--prompt", "a<|im_end|>"], "--prompt: message 1 holds the text of the special token '<|im_end|>'"),
        (["--interactive", "--num_samples", "2"], "--num_samples 2: a conversation goes on from one answer"),
    ],
)
def test_wrong_input_is_one_line(
    flags: list[str], message: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert message in chat(folder, capfd, *flags, code=2)


def test_without_a_template_it_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt")
    assert main(["generate", "--ckpt_path", str(path), "--chat", "--prompt", "hi"]) == 2
    assert "a.ckpt has no chat template" in capfd.readouterr().err


def test_a_template_that_ends_no_turn_is_refused_in_words_of_the_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "base")
    assert main(["generate", "--model", str(tmp_path / "base"), "--chat", "--prompt", "hi"]) == 2
    said = capfd.readouterr().err
    assert f"--chat: {tmp_path / 'base'}: the chat template ends an assistant's turn with no special token" in said
    assert said.endswith("nothing says where an answer ends: leave --chat out\n")


def test_the_other_commands_take_such_a_checkpoint(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    ckpt = ["--ckpt_path", "checkpoints/talk/version_0/last.ckpt"]
    assert main(["predict", *ckpt]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line)["text"] == "fine<|im_end|>\n"
    assert main(["export", *ckpt, "--formats", "torchscript"]) == 0  # On the conversations that it was validated on.
    assert "validation split of check.jsonl" in capfd.readouterr().out
    assert Path("checkpoints/talk/version_0/export/chat_template.jinja").read_text() == CHATML
    assert main(["inspect", *ckpt]) == 0
    assert "split_examples" in capfd.readouterr().out
    assert main(["plan", *ckpt, "--tflops", "1"]) == 0
    assert "60 examples with " in capfd.readouterr().out
    assert main(["fit", *ckpt, "--trainer.max_steps", "92"]) == 0


def test_a_base_model_goes_on_from_its_template_and_a_killed_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "base")
    tokenizer = tokenizer_from_file("base/tokenizer.json")
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save("base/tokenizer.json")
    config = {"chat_template": "{{ bos_token }}" + CHATML, "bos_token": "<|im_start|>"}
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(config))
    write(tmp_path / "talk.jsonl", conversations(80))
    fit = ["fit", "--model.base", "base", "--data.corpus", "talk.jsonl", "--data.seq_len", "64", "--data.cache_dir",
           "cache", "--data.batch_size", "2", "--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "4",
           "--trainer.val_check_interval", "4", "--checkpoint.every_n_steps", "2", "--checkpoint.keep_last", "9",
           "--checkpoint.save_top_k", "0", "--tracking.tensorboard", "false", "--name", "tuned"]  # fmt: skip
    assert main(fit) == 0
    run = tmp_path / "checkpoints/tuned/version_0"
    whole = read_checkpoint(run / "last.ckpt")
    (run / "step-0000004.ckpt").unlink()
    shutil.rmtree("base")
    assert main(["fit", "--ckpt_path", str(run)]) == 0
    resumed = read_checkpoint(run / "last.ckpt")
    assert all(torch.equal(value, resumed["state_dict"][key]) for key, value in whole["state_dict"].items())
    assert resumed["tinytf"]["chat_template"] == '{%- set bos_token = "<|im_start|>" -%}' + config["chat_template"]
    assert main(["generate", "--ckpt_path", str(run / "last.ckpt"), "--chat", "--prompt", "be kind",
                 "--max_new_tokens", "4"]) == 0  # fmt: skip
