"""Errors of the commands' parser: one line, the flag's name, the nearest flag."""

import pytest

from tinytf.cli.config.flags import CommandParser, positive
from tinytf.errors import UserError


@pytest.fixture(name="flags")
def a_parser():
    flags = CommandParser(prog="tinytf toy")
    flags.add_argument("--ckpt_path", required=True)
    flags.add_argument("--count", type=positive)
    return flags


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ckpt_pth", "x"], "unknown flag --ckpt_pth: did you mean --ckpt_path?"),
        (["--ckpt-path=x"], "unknown flag --ckpt-path: did you mean --ckpt_path?"),
        (["--zzz"], "unknown flag --zzz; see tinytf toy --help"),
        (["--ckpt", "x"], "unknown flag --ckpt"),
        ([], "required: --ckpt_path; see tinytf toy --help"),
        (["--ckpt_path", "a", "b"], "unrecognized arguments: b"),
        (["--ckpt_path", "a", "--count", "0"], "--count: 0 is too small"),
        (["--ckpt_path", "a", "--count", "1.5"], "--count: '1.5' is not an integer"),
        (["--ckpt_path", "a", "--count"], "--count: expected one argument"),
        (["--ckpt_path", "a", "--count", "123456789012345e3"], "is not an integer"),
    ],
)
def test_wrong_flags_are_one_line_that_names_them(flags, argv, message):
    with pytest.raises(UserError) as caught:
        flags.parse_args(argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_number_may_have_an_exponent(flags):
    assert [flags.parse_args(["--ckpt_path=a", "--count", text]).count for text in ("1e3", "1.5e3", "20")] == [
        1000,
        1500,
        20,
    ]


def test_a_value_may_look_like_a_flag_after_an_equals_sign(flags):
    assert flags.parse_args(["--ckpt_path=--odd", "--count", "3"]).ckpt_path == "--odd"
