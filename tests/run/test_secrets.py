"""No user, password, query or token of an address is in anything that a run writes or says."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import random
import string
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stress.campaign import BASE, arguments, prepare
from tests.stress.killing import attempt
from tinytf.run.provenance import masked
from tinytf.run.run import Run
from tinytf.utils.text import HIDDEN, public

SCHEMES = ("http", "https", "s3", "ftp", "postgresql", "mysql+pymysql", "mlflow-artifacts", "simplecache::https")
ANYTHING = string.ascii_letters + string.digits + "-._~!$&'()*+,;=%:/?#[]@\"<> {}|\\^`é東"


def spelled(rng: random.Random, length: int = 12) -> str:
    """A secret of any characters; whatever part of four is left of it would be found."""
    odd = "".join(rng.choices(string.ascii_letters, k=4)) + "".join(rng.choices(ANYTHING, k=length))
    # After an "@", the first of these ends the host: no program would take such a password.
    return odd.replace("@", "") if {*"/?#"} & {*odd} else odd


@pytest.mark.parametrize("odd_characters", [False, True])
def test_nothing_of_a_user_a_password_or_a_query_is_left(odd_characters: bool) -> None:
    rng = random.Random(0)
    for _ in range(1000):
        secrets = ["".join(rng.choices(string.ascii_letters, k=9)) for _ in range(3)]
        odd = spelled(rng) if odd_characters else ""
        user, password, token = secrets
        address = f"{rng.choice(SCHEMES)}://{user}:{password}{odd}@host.example/folder/a file.txt?sig={token}#{token}"
        sought = [*secrets, *([odd[:4]] if odd else [])]
        for value in (address, {"uri": [address]}, f"  {address}"):
            kept = json.dumps(public(value))
            assert "host.example/folder/a file.txt" in kept
            assert HIDDEN in kept
            assert not [part for part in sought if part in kept], address
        for argv in ([f"--key={address}"], ["--key", address], ["--key", json.dumps({"uri": address})]):
            shown = " ".join(masked(["tinytf", *argv]))
            assert not [part for part in sought if part in shown], address


@pytest.mark.parametrize(
    "whole",
    [
        "https://host/@user/x.txt", "hf://owner/name?split=train&revision=main", "s3://bucket/part-[0-9].txt", "?",
        f"https://host:8000/x.txt#sha256={'a' * 64}", "sqlite:///runs/a@b.db", "http://[::1]:80/x", "a?b://", "x@y",
        "file:///home/me/text.txt", "text with a://b in it", "C:\\text?.txt", "memory://folder/*.jsonl",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(whole: str) -> None:
    assert public(whole) == whole
    assert public({"data": {"corpus": whole, "max_new_tokens": 5, "tokenizer": "char"}})["data"]["corpus"] == whole


def test_settings_that_are_secrets_by_their_name_are_hidden() -> None:
    given = {"init_args": {"api_key": "abc", "auth_token": "abc", "password": "", "max_new_tokens": 5, "token": None}}
    hidden = {"api_key": HIDDEN, "auth_token": HIDDEN, "password": "", "max_new_tokens": 5, "token": None}
    assert public(given) == {"init_args": hidden}


@pytest.mark.parametrize(
    "name",
    [
        "account_key", "connection_string", "ConnectionString", "db_pwd", "auth", "basic_auth", "Authorization",
        "signature", "tokens", "x.password",
    ],
)  # fmt: skip
def test_whatever_stands_under_a_secrets_name_is_hidden(name: str) -> None:
    for value in ("abc", ["abc"], {"x": "abc"}, ("abc", 1)):
        assert public({"a": [{name: value}]}) == {"a": [{name: HIDDEN}]}
    for value in ("", [], {}, None, True):
        assert public({name: value}) == {name: value}
    assert public({name: 12345}) == {name: 12345 if name == "tokens" else HIDDEN}


def test_counts_of_tokens_are_no_secrets() -> None:
    counts = {
        "start_token": 0, "split_tokens": {"train": 5, "val": 2}, "tokens": [1, 2.5], "tokens_per_second": "1",
        "tokenizer": "char", "author": "me",
    }  # fmt: skip
    assert public(counts) == counts


def test_a_password_with_an_at_before_a_slash_is_hidden_whole() -> None:
    assert public("https://user:p@ss/word@host/x?y") == f"https://{HIDDEN}@host/x?{HIDDEN}"
    assert public("https://user:pass@host/x?a@b") == f"https://{HIDDEN}@host/x?{HIDDEN}"


@pytest.mark.parametrize("start", ["", "s3://x"])
@pytest.mark.parametrize("part", ["a", "@", "::a", "a://", ")", " a://", ":@", "1"])
def test_a_long_text_takes_no_minutes(start: str, part: str) -> None:
    begin = time.monotonic()
    public(start + part * (200_000 // len(part)) + " ://")
    assert time.monotonic() - begin < 20  # 0.5 s; squared, it was half an hour.


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves files to whoever states user, password and token."""

    def do_GET(self) -> None:
        self.path, _, query = self.path.partition("?")
        if "Authorization" in self.headers and query == "sig=querysecret":
            super().do_GET()
        else:
            self.send_error(403)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of the text in tmp_path, with two secrets."""
    prepare(tmp_path)
    handler = functools.partial(Server, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sha256 = hashlib.sha256((tmp_path / "text.txt").read_bytes()).hexdigest()
        host = f"127.0.0.1:{server.server_port}"
        yield f"http://usersecret:passsecret@{host}/text.txt?sig=querysecret#sha256={sha256}"
        server.shutdown()


SECRETS = (b"usersecret", b"passsecret", b"querysecret", b"keysecret")


def leaks(folder: Path) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            texts = [path.read_bytes()]
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    texts += [archive.read(name) for name in archive.namelist()]
            found += [f"{path}: {secret!r}" for secret in SECRETS for text in texts if secret in text]
    return found


def test_no_byte_of_a_run_its_export_or_its_output_has_a_secret(address: str, tmp_path: Path) -> None:
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "csv", "name": "x", "prefix": "s3://usersecret:passsecret@bucket/y?sig=querysecret"},
    }
    case = {
        **BASE, "trainer.max_steps": 2, "trainer.val_check_interval": 2, "data.corpus": address,
        "data.test_corpus": address, "export.formats": "[huggingface]", "export.at_end": "true",
        "trainer.logger": json.dumps(logger), "tracking.wandb": json.dumps({"project": "a", "tags": ["t"]}),
    }  # fmt: skip
    pytest.importorskip("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        # The text is split by place, and the test corpus is its own.
        code, _ = attempt([*arguments(case), "--data.val_fraction=0.2"], tmp_path)
    said = (tmp_path / "attempts.log").read_text()
    assert code == 0, said
    (run,) = (tmp_path / "checkpoints" / "killed").iterdir()
    assert (run / "export" / "huggingface" / "README.md").exists()
    assert f"http://{HIDDEN}@127.0.0.1" in (run / "config.yaml").read_text()
    assert leaks(run) == []
    assert not [secret for secret in SECRETS if secret.decode() in said]


def test_a_resume_finds_the_text_by_its_checksum_or_takes_the_address_again(address: str, tmp_path: Path) -> None:
    case = {**BASE, "trainer.max_steps": 2, "data.corpus": address, "data.cache_dir": str(tmp_path / "cache")}
    assert attempt(arguments(case), tmp_path)[0] == 0
    assert attempt(["fit", "--ckpt_path=last", "--trainer.max_steps=4"], tmp_path)[0] == 0
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    code, _ = attempt(["fit", "--ckpt_path=last", "--trainer.max_steps=6"], tmp_path)
    assert code == 2
    line = (tmp_path / "attempts.log").read_text().splitlines()[-1]
    assert f"corpus http://{HIDDEN}@127.0.0.1" in line
    assert f"what {HIDDEN} stands for is not stored; give the whole address again" in line
    code, _ = attempt(["fit", "--ckpt_path=last", "--trainer.max_steps=6", f"--data.corpus={address}"], tmp_path)
    assert code == 0, (tmp_path / "attempts.log").read_text()


def test_a_resume_asks_again_for_what_was_hidden(tmp_path: Path) -> None:
    prepare(tmp_path)
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "csv", "name": "x", "prefix": "s3://usersecret:passsecret@bucket/y"},
    }
    # Three stars alone hide nothing.
    case = {
        **BASE,
        "trainer.max_steps": 2,
        "trainer.logger": json.dumps([logger]),
        "tracking.samples.prompts": '["***"]',
    }
    assert attempt(arguments(case), tmp_path)[0] == 0, (tmp_path / "attempts.log").read_text()
    resume = ["fit", "--ckpt_path=last", "--trainer.max_steps=4"]
    assert attempt(resume, tmp_path)[0] == 2
    line = (tmp_path / "attempts.log").read_text().splitlines()[-1]
    assert f"trainer.logger[0].init_args.prefix: what {HIDDEN} stands for is not stored; give the whole" in line
    assert attempt([*resume, f"--trainer.logger={json.dumps([logger])}"], tmp_path)[0] == 0
    assert leaks(tmp_path / "checkpoints") == []


def test_messages_and_tracebacks_in_the_journal_have_none(tmp_path: Path) -> None:
    config = {"name": "a", "checkpoint": {"dir": str(tmp_path)}, "trainer": {"max_steps": 1}}
    every = {f"key_{n}": f"{scheme}://usersecret:passsecret@h/x?sig=querysecret" for n, scheme in enumerate(SCHEMES)}
    data = {"corpus": "https://usersecret:passsecret@h/x?sig=querysecret", "sha256": "a"}
    with Run.open({**config, "anything": [every], "sub": {"api_key": "keysecret"}}, data) as run:
        assert not [secret for secret in SECRETS if secret.decode() in f"{run.config} {run.data}"]
        assert leaks(run.directory) == []
