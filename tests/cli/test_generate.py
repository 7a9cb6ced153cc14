"""`tinytf generate`, from flags to what stands on stdout."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tests.cli.tiny_checkpoint import write_checkpoint
from tests.weights.folders import write_folder
from tinytf.cli import generate
from tinytf.cli.main import main
from tinytf.data.tokenizer import encode, tokenizer_from_file
from tinytf.errors import UserError
from tinytf.weights.checkpoint import load_model


@pytest.fixture(scope="module", name="folder")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_checkpoint(folder / "char.ckpt", "char")
    write_checkpoint(folder / "bpe.ckpt", "bpe", max_seq_len=64)
    return folder


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(name="say")
def runner(folder, capfd):
    def say(*argv, model="char"):
        assert generate.run(["--ckpt_path", str(folder / f"{model}.ckpt"), "--device", "cpu", *map(str, argv)]) == 0
        return capfd.readouterr()

    return say


def texts(said):
    return [json.loads(line)["text"] for line in said.out.splitlines()]


def test_it_writes_the_prompt_its_continuation_and_a_line_feed(say):
    out = say("--prompt", "ROMEO:", "--max_new_tokens", 20).out
    assert out.startswith("ROMEO:")
    assert out.endswith("\n")
    assert len(out) == 6 + 20 + 1


@pytest.mark.parametrize("model", ["char", "bpe"])
def test_same_seed_same_text_and_another_seed_another(say, model):
    flags = ("--prompt", "It is", "--max_new_tokens", 30)
    first = say(*flags, "--seed", 5, model=model).out
    assert say(*flags, "--seed", 5, "--threads", 2, model=model).out == first
    assert say(*flags, "--seed", 6, model=model).out != first


@pytest.mark.parametrize("seed", [2**64 - 1, -(2**63) - 1])
def test_a_seed_that_no_generator_takes_is_one_line(say, seed):
    with pytest.raises(UserError, match=f"--seed {seed}: give one from"):
        say("--prompt", "a", f"--seed={seed}", "--num_samples", 2)


def test_sample_i_is_a_lone_run_with_seed_plus_i(say):
    flags = ("--prompt", "It is", "--json")
    together = texts(say(*flags, "--num_samples", 3, "--seed", 4))
    assert together == [texts(say(*flags, "--seed", seed))[0] for seed in (4, 5, 6)]


def test_text_and_json_say_the_same(say):
    flags = ("--prompt", "It is", "--num_samples", 2)
    first, second = texts(say(*flags, "--json"))
    assert (
        say(*flags).out
        == f"--- sample 1 of 2, seed 0 ---\nIt is{first}\n--- sample 2 of 2, seed 1 ---\nIt is{second}\n"
    )


def test_greedy_is_what_the_model_finds_most_probable(say, folder):
    loaded = load_model(folder / "char.ckpt")
    ids = loaded.tokenizer.encode("It is").ids
    for _ in range(10):
        ids.append(loaded.model(torch.tensor([ids]))[0, -1].argmax().item())
    expected = loaded.tokenizer.decode(ids) + "\n"
    assert say("--prompt", "It is", "--max_new_tokens", 10, "--temperature", 0, "--seed", 9).out == expected


def test_a_stop_string_is_cut_off_wherever_it_falls(say):
    whole = texts(say("--prompt", "It is", "--json"))[0]
    for stop in (whole[40:45], whole[7], whole[100:130]):
        said = json.loads(say("--prompt", "It is", "--stop", "no such text", f"--stop={stop}", "--json").out)
        assert said["text"] == whole[: whole.index(stop)]
        assert said["finish"] == "stop"
        assert say("--prompt", "It is", f"--stop={stop}").out == f"It is{whole[: whole.index(stop)]}\n"


def test_what_a_report_counts(say):
    said = json.loads(say("--prompt", "It is", "--max_new_tokens", 12, "--json", "--seed", 3).out)
    assert said == {"prompt": "It is", "text": said["text"], "tokens": 12, "finish": "length", "seed": 3}


def test_past_the_context_it_goes_on_and_says_so_once(say):
    said = say("--prompt", "It is", "--max_new_tokens", 200)
    assert len(said.out) == 5 + 200 + 1
    assert said.err.count("max_seq_len 32") == len(said.err.splitlines()) == 1
    assert say("--prompt", "It is", "--max_new_tokens", 20).err == ""
    assert "max_seq_len 32" in say("--prompt", "It is the east, and Juliet is the sun.", "--max_new_tokens", 1).err


def test_an_empty_prompt_starts_from_a_line_feed_or_the_end_of_text(say, folder):
    starts = {"char": "\n", "bpe": "<|endoftext|>"}
    for model, start in starts.items():
        loaded = load_model(folder / f"{model}.ckpt")
        token = loaded.tokenizer.token_to_id(start)
        following = loaded.model(torch.tensor([[token]]))[0, -1].argmax().item()
        out = say("--max_new_tokens", 1, "--temperature", 0, model=model).out
        assert out == (loaded.tokenizer.decode([following]) + "\n")


def test_the_prompt_may_come_from_a_file_or_stdin(say, tmp_path, monkeypatch):
    expected = say("--prompt", "It is\n").out
    (tmp_path / "prompt.txt").write_bytes(b"It is\n")
    assert say("--prompt_file", tmp_path / "prompt.txt").out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"It is\n")))
    assert say("--prompt_file", "-").out == expected


def test_characters_of_several_tokens_come_out_whole(say):
    out = say("--prompt", "naïve 😀", "--max_new_tokens", 3, "--temperature", 0, model="bpe").out
    assert out.startswith("naïve 😀")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--temperature", "hot"], "--temperature: 'hot' is not a number"),
        (["--top_k", "0"], "--top_k is 0"),
        (["--top_p", "0"], "--top_p is 0.0"),
        (["--top_p", "1.5"], "--top_p is 1.5"),
        (["--min_p", "-0.5"], "--min_p is -0.5"),
        (["--max_new_tokens", "0"], "--max_new_tokens: 0 is too small"),
        (["--num_samples", "-2"], "--num_samples: -2 is too small"),
        (["--stop", ""], "--stop is empty"),
        (["--temprature", "1"], "did you mean --temperature?"),
        (["--prompt", "a", "--prompt_file", "b"], "not allowed with argument"),
        (["--prompt_file", "-", "--interactive"], "leave out one of the two"),
        (["--seed", str(2**63 + 1), "--interactive"], f"to {2**63}"),
        (["--prompt_file", "no/such/file"], "--prompt_file no/such/file: No such file"),
        (
            ["--prompt", "It is ~"],
            "--prompt: the tokenizer does not know the character '~' (U+007E TILDE) at position 6",
        ),
    ],
)
def test_wrong_input_is_one_line_that_names_it(folder, argv, message):
    with pytest.raises(UserError) as caught:
        generate.run(["--ckpt_path", str(folder / "char.ckpt"), *argv])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_is_not_utf8_is_refused_with_its_place(folder, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="byte 3 is not UTF-8"):
        generate.run(["--ckpt_path", str(folder / "char.ckpt"), "--prompt_file", str(tmp_path / "latin.txt")])


def test_a_device_that_is_not_there_is_refused(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: this machine has none"):
        generate.run(["--ckpt_path", str(folder / "char.ckpt"), "--device", "cuda"])


def test_a_diverged_model_is_refused(folder, tmp_path):
    content = torch.load(folder / "char.ckpt", weights_only=True)
    content["state_dict"]["model.norm.weight"].fill_(float("nan"))
    torch.save(content, tmp_path / "nan.ckpt")
    with pytest.raises(UserError, match=r"nan\.ckpt: the model's logits are not finite"):
        generate.run(["--ckpt_path", str(tmp_path / "nan.ckpt"), "--device", "cpu"])


def test_lightning_is_not_imported(folder):
    code = (
        "import sys; from tinytf.cli.main import main; assert main(sys.argv[1:]) == 0; "
        "assert 'lightning' not in sys.modules"
    )
    argv = ["generate", "--ckpt_path", folder / "char.ckpt", "--max_new_tokens", "2"]
    subprocess.run([sys.executable, "-c", code, *argv], check=True, capture_output=True)


def test_help_does_not_wait_for_torch():
    code = """if True:
        import sys
        from tinytf.cli.generate import parser
        parser().format_help()
        assert 'torch' not in sys.modules and 'tokenizers' not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)


@contextmanager
def endless(folder):
    command = [sys.executable, "-m", "tinytf", "generate", "--ckpt_path", folder / "char.ckpt", "--prompt", "It is"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--max_new_tokens", "100000000"], **pipes) as process:
        try:
            yield process
        finally:
            process.kill()  # It would be waited for without end, where SIGINT is ignored.


def test_text_is_streamed_and_ctrl_c_ends_it_quietly(folder):
    with endless(folder) as process:
        assert process.stdout.read(30).startswith(b"It is")  # long before the last token
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_a_closed_pipe_ends_it_quietly(folder):
    with endless(folder) as process:
        process.stdout.read(30)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    assert [line for line in err.splitlines() if not line.startswith(b"tinytf: note:")] == []


# -- --interactive -------------------------------------------------------------------------------------------------


def piped(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_each_line_of_a_pipe_is_a_prompt_and_the_seeds_go_on(say, monkeypatch):
    flags = ("--max_new_tokens", 10, "--num_samples", 2)
    prompts = ("It is", "ROMEO:\n", "é")
    alone = [say("--prompt", prompt, *flags, "--seed", 5 + 2 * i).out for i, prompt in enumerate(prompts)]
    piped(monkeypatch, "\n\r\nROMEO:\\\n\né".encode())
    session = ("--interactive", "--prompt", "It is", *flags, "--seed", 5)
    assert say(*session).out == "".join(alone)
    piped(monkeypatch, "ROMEO:\\\n\né\n".encode())
    assert [json.loads(line)["prompt"] for line in say(*session, "--json").out.splitlines()][::2] == list(prompts)


def test_a_prompt_of_a_closed_stdin_is_refused(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # As <&- leaves it.
    with pytest.raises(UserError, match="--prompt_file -: stdin is closed"):
        generate.run(["--ckpt_path", str(folder / "char.ckpt"), "--prompt_file", "-"])


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_without_a_prompt_nothing_is_written(say, monkeypatch, content):
    piped(monkeypatch, content)
    assert say("--interactive").out == ""
    monkeypatch.setattr(sys, "stdin", None)
    assert say("--interactive").out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"It is\n\n~\nIt\n", "stdin, line 3: the tokenizer does not know the character '~'"),
        (b"It is\ncaf\xe9\n", "stdin, line 2: byte 3 is not UTF-8"),
        (b"a" * (2**24 + 1), "stdin, line 1: it has more than the 16,777,216 bytes"),
    ],
)
def test_a_wrong_line_of_a_pipe_ends_it_with_its_number(folder, monkeypatch, content, message):
    piped(monkeypatch, content)
    argv = ["--ckpt_path", str(folder / "char.ckpt"), "--interactive", "--max_new_tokens", "2"]
    with pytest.raises(UserError, match=re.escape(message)):
        generate.run(argv)


def test_at_a_terminal_what_cannot_be_encoded_and_ctrl_c_lead_to_the_next_prompt(say, monkeypatch):
    lines = iter(["~", KeyboardInterrupt, "", UnicodeDecodeError("utf-8", b"\xff", 0, 1, ""), "It is", EOFError])

    def typed(mark):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    said = say("--interactive", "--max_new_tokens", 10)
    monkeypatch.undo()
    assert said.out == "\n" + say("--prompt", "It is", "--max_new_tokens", 10).out + "\n"
    _, unknown, not_utf8, end = said.err.splitlines()
    assert unknown.startswith("> tinytf: error: prompt: the tokenizer does not know the character '~'")
    assert (not_utf8, end) == ("> > > tinytf: error: prompt: byte 0 is not UTF-8", "> > ")


@pytest.mark.skipif(os.name != "posix", reason="has no pseudo-terminals")
def test_ctrl_c_stops_the_text_and_ctrl_d_ends_the_program(folder):
    import pty

    command = [sys.executable, "-m", "tinytf", "generate", "--ckpt_path", folder / "char.ckpt", "--interactive"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command, "--max_new_tokens", "100000000"], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "dumb"}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = ""

    def read_until(pattern, interrupts=0):
        nonlocal seen
        while not re.search(pattern, seen, re.DOTALL):
            if not select.select([ours], [], [], 10 if interrupts else 60)[0]:
                assert interrupts, f"nothing more comes after {seen!r}"
                # Up to Python 3.10, readline misses one that arrives just before it waits for a key.
                os.kill(process.pid, signal.SIGINT)
                interrupts -= 1
                continue
            seen += os.read(ours, 4096).decode()
        seen = ""

    try:
        read_until(r"Ctrl-D ends\r\n> $")
        os.write(ours, b"It is\n")
        read_until(r"It is\r\nIt is.{200}")  # what was typed, then the text
        os.kill(process.pid, signal.SIGINT)
        read_until(r"\n> $")
        os.write(ours, b"\x1b[A")  # The arrow up.
        read_until("It is$")
        os.kill(process.pid, signal.SIGINT)
        read_until(r"\n> $", interrupts=3)
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize(("is_terminal", "expected"), [(True, "p\\x1b[2J\tq\\x07\n\n"), (False, "p\x1b[2J\tq\x07\n\n")])
def test_tokens_do_nothing_to_a_terminal_and_a_pipe_gets_them_exact(is_terminal, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    generate.Printer("p\x1b[2J", [SimpleNamespace(text="\tq\x07\n", finish="length", seed=0)]).show()
    assert capsys.readouterr().out == expected


def test_a_hugging_face_folder_is_read_as_it_is(tmp_path, capsys):
    model = write_folder(tmp_path / "pretrained").eval()
    tokenizer = tokenizer_from_file(tmp_path / "pretrained" / "tokenizer.json")
    ids = encode(tokenizer, "It is")
    for _ in range(5):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    flags = ["--prompt", "It is", "--max_new_tokens", "5", "--temperature", "0"]
    assert main(["generate", "--model", str(tmp_path / "pretrained"), *flags]) == 0
    assert capsys.readouterr().out == tokenizer.decode(ids) + "\n"
    (tmp_path / "pretrained" / "config.json").write_text('{"model_type": "gpt2"}')
    assert main(["generate", "--model", str(tmp_path / "pretrained"), *flags]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"tinytf: error: --model {tmp_path / 'pretrained'}: config.json: ")
    assert "learned positions" in line
