"""3. Tokens: tokenizers by character, byte-level BPE, or a file. All are Hugging Face ``tokenizers`` objects.

What every one of them owes: decode(encode(text)) == text. A character that a tokenizer does not know is an error with
its name and place, never a silent gap.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tinytf.errors import UserError
from tinytf.utils.files import read_text, user_path

END_OF_TEXT = "<|endoftext|>"
_ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
BYTES = 256
LARGEST_FILE = 1 << 28
"""Bytes of a tokenizer.json; the largest in use, of 262,144 entries, has 33 MB."""
PROBE = "A cat's 1st day.\n\té あ 🙂  "
"""Text of several scripts and kinds of white space, which a tokenizer may fail to know, but must not break at."""
PROBED = 512
"""Ids, and characters, that are tried one by one: the special tokens and all bytes are among the first of them."""
ANY_CHARACTER = r"[\s\S]"
"""The pattern after each match of which a text by character is cut, in the words of every engine."""
OLD_ANY_CHARACTER = "(?m:.)"
"""The same for Oniguruma alone: JavaScript either refuses it or drops line feeds without a word, and C++ refuses it."""


def character_tokenizer(characters: Iterable[str], *, end_of_text: bool) -> Tokenizer:
    """One token per character, numbered by code point.

    Args:
        characters: the alphabet.
        end_of_text: give id 0 to ``<|endoftext|>``, which stands between documents.
    """
    entries = [END_OF_TEXT] * end_of_text + sorted(set(characters))
    # The unknown token is not in the vocabulary, so the model itself raises where it would otherwise drop.
    tokenizer = Tokenizer(models.WordLevel({entry: number for number, entry in enumerate(entries)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = _cut_by_character()
    tokenizer.decoder = decoders.Fuse()
    if end_of_text:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return ready(tokenizer)


def byte_pair_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE as in GPT-2, with all 256 bytes, so that it knows every text.

    The same texts give the same tokenizer. Cut them only where GPT-2's pattern cuts (`tokens.encode`).

    Raises:
        UserError: if ``vocab_size`` is below the 257 entries it starts from, or above what the texts can fill.
    """
    if vocab_size <= BYTES + 1:
        raise UserError(
            f"data.vocab_size {vocab_size} is too small for bpe: {BYTES} bytes and {END_OF_TEXT} "
            f"come before the first merge, so give at least {BYTES + 2}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # A pair that occurs once saves no token anywhere else.
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = tokenizer.get_vocab_size()
    if made < vocab_size:
        advice = f"set it to {made} or less" if made > BYTES + 1 else "use --data.tokenizer char"
        raise UserError(
            f"data.vocab_size {vocab_size} is more than this corpus fills: nothing repeats after {made} entries; "
            f"{advice}, or give more text (or a larger data.bpe_sample_bytes)"
        )
    return ready(tokenizer)


def tokenizer_from_file(path: str | Path) -> Tokenizer:
    """A ``tokenizer.json`` of Hugging Face's ``tokenizers``.

    Raises:
        UserError: if there is no such file, or it is none.
    """
    if not user_path(path, what="tokenizer").exists():
        raise UserError(f"tokenizer {path}: there is no such file; give char, bpe or the path of a tokenizer.json")
    return tokenizer_from_text(read_text(path, what="tokenizer", limit=LARGEST_FILE), str(path))


def tokenizer_from_text(text: str, name: str = "tokenizer") -> Tokenizer:
    """A tokenizer from the JSON that ``Tokenizer.to_str`` writes.

    Raises:
        UserError: if it is none; ``name`` says in the message where it came from.
    """
    with library_errors(f"tokenizer {name}: it is no tokenizer.json of the tokenizers library"):
        tokenizer = Tokenizer.from_str(text)
    ids = sorted(tokenizer.get_vocab().values())
    entries, largest = tokenizer.get_vocab_size(), ids[-1] if ids else -1
    if largest >= entries:
        raise UserError(
            f"tokenizer {name}: its {entries:,} entries have ids up to {largest:,}; number them without holes"
        )
    with library_errors(f"tokenizer {name}: it cannot be used"):
        _probe(ready(tokenizer), ids)
    if is_by_character(tokenizer):
        # Older checkpoints have the pattern of one engine: what is made of them has the pattern of all. The file's hash
        # is another, so a resumed run tokenizes its corpus once more; the ids are the same.
        tokenizer.pre_tokenizer = _cut_by_character()
    return tokenizer


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """One line, which begins with ``what``, for an error of the tokenizers library, a panic of its Rust among them."""
    try:
        yield
    except BaseException as error:
        # The binding raises bare Exception; a panic is a BaseException whose class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what} ({' '.join(str(error).split())})") from error


def _probe(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Encode and decode a little: parts with senseless settings are read without a word, and panic when used."""
    everything = tokenizer.decode(ids, skip_special_tokens=False)
    for each in ids[:PROBED]:
        tokenizer.decode([each], skip_special_tokens=False)
    for text in (PROBE, everything[:PROBED]):
        with contextlib.suppress(Exception):  # It need not know these characters; a panic is no Exception.
            tokenizer.encode(text, add_special_tokens=False)


def ready(tokenizer: Tokenizer) -> Tokenizer:
    """Set what the JSON does not carry or should not: text is data, and none of it is cut off or padded."""
    # Not part of the JSON: a copy or pickle of a tokenizer loses it, and would read <|endoftext|> as the special token.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text. ``<|endoftext|>`` in it is text like any other.

    Raises:
        UserError: naming the first character that the tokenizer does not know or would change.
    """
    for position, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise UserError(f"the text is not UTF-8: {describe(character)} at position {position}")
    ready(tokenizer)
    if is_by_character(tokenizer):
        known = tokenizer.get_vocab(with_added_tokens=False)
        for position, character in enumerate(text):
            if character not in known:
                raise UserError(unknown(character, f"at position {position}"))
        return [known[character] for character in text]
    with library_errors("the tokenizer cannot encode the text"):
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    if not is_lossless(tokenizer):
        refuse_loss(tokenizer, ids, text, "the text")
    return ids


def require_unicode(text: str, what: str) -> None:
    """Refuse half a surrogate pair, which JSON can write, and which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} holds half a surrogate pair, which is no character") from None


def unknown(character: str, where: str) -> str:
    """The message for a character outside the alphabet."""
    return f"the tokenizer does not know the character {describe(character)} {where}: remove it, or train with bpe"


def describe(character: str) -> str:
    """A character for people: how it prints, its number, its name."""
    name = unicodedata.name(character, "")
    return f"{character!r} (U+{ord(character):04X}{' ' + name if name else ''})"


def refuse_loss(tokenizer: Tokenizer, ids: list[int], text: str, where: object) -> None:
    """Raise UserError if the ids do not give back the text."""
    with library_errors(f"the tokenizer cannot decode what it makes of {where}"):
        back = tokenizer.decode(ids, skip_special_tokens=False)
    if back == text:
        return
    position = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    lost = describe(text[position]) if position < len(text) else "the end"
    raise UserError(
        f"the tokenizer does not give back what it was given: {where} differs from character {position} on, {lost}; "
        "use char, bpe, or a byte-level tokenizer without a normalizer"
    )


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens, by their texts."""
    return {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def end_of_text_id(tokenizer: Tokenizer) -> int | None:
    """The id that stands between documents, or None if the tokenizer has none."""
    special = special_tokens(tokenizer)
    return next((special[name] for name in _ENDS_OF_TEXT if name in special), None)


def begin_of_text_id(tokenizer: Tokenizer) -> int | None:
    """The id that a text begins with: what the tokenizer itself puts there for other programs, else that between."""
    added = added_to_texts(tokenizer)
    return added[0] if added else end_of_text_id(tokenizer)


def added_to_texts(tokenizer: Tokenizer) -> list[int]:
    """The ids that the tokenizer's post-processor puts around a text; tinytf's own use of it adds none."""
    with library_errors("the tokenizer cannot encode an empty text"):
        ids: list[int] = tokenizer.encode("", add_special_tokens=True).ids
    return ids


def end_of_text(tokenizer: Tokenizer) -> dict[int, str]:
    """`end_of_text_id` as what ends a generated text, with the name of that end."""
    number = end_of_text_id(tokenizer)
    return {} if number is None else {number: "end_of_text"}


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Of the tokenizer's JSON, in hex: the same for the same tokenizer."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def is_by_character(tokenizer: Tokenizer) -> bool:
    """Whether it is one of `character_tokenizer`: an id is a function of one character."""
    return (
        isinstance(tokenizer.model, models.WordLevel)
        and tokenizer.normalizer is None
        and _state(tokenizer.pre_tokenizer)
        in (_state(_cut_by_character()), _state(_cut_by_character(OLD_ANY_CHARACTER)))
        and _state(tokenizer.decoder).get("type") == "Fuse"
        and all(len(entry) == 1 for entry in tokenizer.get_vocab(with_added_tokens=False) if entry != END_OF_TEXT)
    )


def _cut_by_character(pattern: str = ANY_CHARACTER) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def is_gpt2_like(tokenizer: Tokenizer) -> bool:
    """Whether words are cut by GPT-2's own pattern and every byte has a token."""
    stage = _state(tokenizer.pre_tokenizer)
    return _has_all_bytes(tokenizer) and _is_byte_level(stage, use_regex=True)


def is_byte_pair_family(tokenizer: Tokenizer) -> bool:
    """Whether words are cut by a pattern of GPT-2's family (GPT-4, Llama 3, Qwen) and every byte has a token.

    All of these end in ``\\s+(?!\\S)|\\s+`` and let white space that follows a letter start a new word.
    """
    stage = _state(tokenizer.pre_tokenizer)
    if stage.get("type") != "Sequence" or not _has_all_bytes(tokenizer):
        return False
    *splits, last = stage["pretokenizers"]
    patterns = [split.get("pattern", {}).get("Regex", "") for split in splits if split.get("type") == "Split"]
    return len(patterns) == len(splits) == 1 and r"\s+(?!\S)" in patterns[0] and _is_byte_level(last, use_regex=False)


def is_lossless(tokenizer: Tokenizer) -> bool:
    """Whether decode(encode(text)) == text is known from how it is built, for texts it knows."""
    if tokenizer.normalizer is not None:
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    if any((token.lstrip or token.rstrip) and not token.special for token in added):
        return False  # They eat the white space beside them.
    return is_by_character(tokenizer) or is_gpt2_like(tokenizer) or is_byte_pair_family(tokenizer)


def _is_byte_level(stage: dict[str, Any], *, use_regex: bool) -> bool:
    return (
        stage.get("type") == "ByteLevel" and not stage["add_prefix_space"] and stage.get("use_regex", True) == use_regex
    )


def _has_all_bytes(tokenizer: Tokenizer) -> bool:
    return (
        isinstance(tokenizer.model, models.BPE)
        and not tokenizer.model.dropout
        and isinstance(tokenizer.decoder, decoders.ByteLevel)
        and all(tokenizer.token_to_id(byte) is not None for byte in pre_tokenizers.ByteLevel.alphabet())
    )


def _state(part: Any) -> dict[str, Any]:
    if part is None:
        return {}
    state: dict[str, Any] = json.loads(part.__getstate__())
    return state
