"""YAML of strangers and of the hurried: read within bounds, as JSON's values, or refused in one line."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser, _loaders_dumpers

from tests.cli.wrong_input import TINY, refused, says
from tests.cli.wrong_input import in_an_empty_folder as in_an_empty_folder
from tinytf.cli.config.files import read_config
from tinytf.cli.config.strict_yaml import LONGEST, load
from tinytf.cli.main import main
from tinytf.errors import UserError
from tinytf.utils.text import yaml_text

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))

BOMBS = {
    "holds itself": ("a: &a [*a]", "50 levels deep"),
    "holds itself as a mapping": ("&a {b: *a}", "levels deep"),
    "billion laughs": (LAUGHS, "100,000 values"),
    "brackets": ("[" * 3_000, "levels deep"),
    "brackets closed": ("a: " + "[" * 3_000 + "]" * 3_000, "levels deep"),
    "braces": ("{a: " * 3_000, "levels deep"),
    "long": ("a: " + "x" * 10_000_000, "262,144"),
    "float": ("a: !!float abc", "abc is not a number"),
    "int": ("a: !!int 1_000", "1_000 is not a number"),
    "bool": ("a: !!bool maybe", "maybe is not true or false"),
    "binary": ("a: !!binary '*'", "binary"),
    "set": ("a: !!set {b}", "set"),
    "timestamp": ("a: !!timestamp 2020-13-45", "timestamp"),
    "python": ("a: !!python/object/apply:os.system [touch ran]", "python"),
    "own tag": ("a: !env HOME", "!env"),
    "twice": ("model: {}\nmodel: {}", "model is set twice"),
    "twice, inside": ("model:\n  a: 1\n  a: 2", "model.a is set twice, here and in line 2"),
    "a list as key": ("? [a]\n: b", "unhashable"),
    "a merge of nothing": ("a: {<<: 3}", "merging"),
    "an alias of nothing": ("a: *b", "undefined alias"),
    "two documents": ("a: 1\n---\nb: 2", "document"),
    "control characters": ("a: \x1b[2J", "special characters"),
    "half a text": ("a: 'b", "unexpected end"),
}


@pytest.mark.parametrize(("text", "words"), BOMBS.values(), ids=BOMBS)
def test_a_file_is_refused_at_once_in_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        read_config(str(path))
    assert time.monotonic() - begin < 10
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not Path("ran").exists()


KEYS = ["model.d_model", "trainer.callbacks", "export.formats", "tracking.wandb", "model.optimizer"]
FLAGS = list(zip([text for text, _ in BOMBS.values() if len(text) < 100_000], itertools.cycle(KEYS)))


@pytest.mark.parametrize(("text", "key"), FLAGS, ids=lambda text: text[:20])
def test_a_flag_is_refused_in_one_line(text: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["fit", "--config", TINY, f"--{key}={text}"], capsys)


NUMBERS = [
    "1_000",
    "\uff11\uff12",
    "\u0661",
    "0x80",
    "0b11",
    "1:30",
    "1e3x",
    "\u0967",
    "²",
    "1" * 23,
    "1" * 400,
    "+-1",
    "1,000",
]


@pytest.mark.parametrize("text", NUMBERS)
@pytest.mark.parametrize("as_file", [False, True])
def test_a_number_is_written_in_decimal_digits(
    text: str, as_file: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(f"model:\n  d_ff: {text}\n", encoding="utf-8")
    given = ["--config", "bad.yaml"] if as_file else [f"--model.d_ff={text}"]
    says(refused(["fit", "--config", TINY, *given], capsys), ["model.d_ff"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1e3", 1000), ("1.5e3", 1500), ("1e-3", 1e-3), ("1000.0", 1000.0), ("1e300", 1e300),
     ("010", 10), ("no", "no"), ("2020-01-01", "2020-01-01"), ("1.", 1.0), (".5", 0.5),
     ("77950e8", 77950 * 10**8),
     ("~", None), ("null", None), ("True", True), ("-.inf", -math.inf), ("'1'", "1"), ("", None)],
)  # fmt: skip
def test_the_core_schema(text: str, value: Any) -> None:
    assert load(f"key: {text}") == {"key": value}
    assert type(load(text)) is type(value)


@settings(deadline=None)
@given(st.text(alphabet="[]{}:,&*!?-|>'\"#%@` \n\tab1e.<~", max_size=60))
def test_any_text_is_a_value_or_a_yaml_error(text: str) -> None:
    with contextlib.suppress(yaml.YAMLError):
        load(text)


def test_names_of_jsonargparse_that_reading_hangs_on() -> None:
    assert _loaders_dumpers.not_loaded is not None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--n", type=int)
    for text in ("\uff11\uff12", "1_000"):
        with pytest.raises(Exception, match="Expected a <class 'int'>"):
            parser.parse_args([f"--n={text}"])
    assert parser.parse_args(["--n=12"]).n == 12
    assert sys.maxsize > LONGEST


TRICKY = st.from_regex(r"[-+]?[0-9._:]{1,6}([eE][-+]?[0-9]{1,3})?", fullmatch=True) | st.sampled_from(
    ["no", "Yes", "null", "~", "", " ", "=", "<<", "0o17", "0x1F", "2020-01-01", "77950e8", "1e3", ".inf", "- a",
     "a: b", "#", "'", "\u202e", "\x85", "\ud800", "\U0001f600", "!a", "&a", "*a", "%", "@", "|", "{", "true "]
)  # fmt: skip


VALUES = st.text() | TRICKY | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False)


@settings(deadline=None)
@given(st.dictionaries(st.text() | TRICKY, VALUES | st.lists(VALUES), max_size=8))
def test_what_is_written_is_what_is_read(content: dict[str, Any]) -> None:
    text = yaml_text(content)
    assert load(text) == content
    assert all(type(load(text)[key]) is type(value) for key, value in content.items())


@pytest.mark.parametrize("name", ["3e-4", "1e3", "77950e8", "007", "1_000", "no", "null", "2020-01-01", "a: b", "1:30"])
def test_a_run_may_be_named_like_anything(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert printed(["--name", name], capsys)["name"] == name
    (tmp_path / "named.yaml").write_text(yaml_text({"name": name}))
    assert printed(["--config", "named.yaml"], capsys)["name"] == name


def printed(flags: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """The config that ``--print_config`` prints, read back from a file."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", TINY, *flags, "--print_config"])
    assert stop.value.code == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    return read_config("printed.yaml").content


def test_json_is_read_as_strictly_as_yaml() -> None:
    with pytest.raises(yaml.YAMLError, match=r"a\.b is set twice, here and in line 1: keep one"):
        load('{"a": {"b": 1, "b": 2}}')
    assert load('{"a": [NaN, Infinity]}') == {"a": ["NaN", "Infinity"]}
    assert load('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}
