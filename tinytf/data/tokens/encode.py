"""3. Tokens: ids of long texts, cut where a cut cannot change an id, encoded in parallel, in bounded memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinytf.data.documents import code_points
from tinytf.data.splits import TextSpan
from tinytf.data.tokenizer import (
    END_OF_TEXT,
    is_by_character,
    is_byte_pair_family,
    is_gpt2_like,
    is_lossless,
    library_errors,
    refuse_loss,
    unknown,
)
from tinytf.errors import UserError

CHUNK = 1 << 16
"""Characters encoded at a time by one thread."""
CHUNKS_AT_ONCE = 16  # A megabyte of text: enough for the threads, and what memory holds.
CHARACTERS_CACHED = 2_000_000
"""Of words whose ids are cached; about 100 MB with them."""
LONGEST_CHUNK = 1 << 24
"""Characters without a place to cut after which a text is refused: all of it would have to be in memory."""

Ids = npt.NDArray[np.uint32]
Rule = re.Pattern[str]

BEFORE_WHITE_SPACE = re.compile(r"(?<=\S)(?=[ \n])")
"""GPT-2's pattern begins a word here, whatever stands around. Python's white space includes all of Unicode's."""


if hasattr(os, "register_at_fork"):
    # The library's threads are not there in a forked process, which would wait for them for ever. It knows that itself,
    # unless the variable is set.
    os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))


class Encoder(Protocol):
    """Token ids of one document's text, given as blocks; ``where`` names it in errors."""

    def __call__(self, blocks: Iterable[str], where: object) -> Iterator[Ids]: ...


def encoder(tokenizer: Tokenizer) -> Encoder:
    """The fastest way to encode a text that is known to give the ids of encoding it in one go."""
    if is_by_character(tokenizer):
        return lookup_encoder(tokenizer)
    return chunked_encoder(tokenizer)


def lookup_encoder(tokenizer: Tokenizer) -> Encoder:
    """For a character tokenizer: one lookup per character, twenty times as fast as the tokenizer itself."""
    known = tokenizer.get_vocab(with_added_tokens=False)
    nothing = np.uint32(0xFFFFFFFF)
    table = np.full(0x110000, nothing, dtype=np.uint32)
    for character, number in known.items():
        if character != END_OF_TEXT:
            table[ord(character)] = number

    def encode(blocks: Iterable[str], where: object) -> Iterator[Ids]:
        before, line = 0, 1
        for block in blocks:
            ids = table[code_points(block)]
            if ids.max(initial=0) == nothing:
                position = int(np.argmax(ids == nothing))
                offset, line = before + len(block[:position].encode()), line + block.count("\n", 0, position)
                if isinstance(where, TextSpan):  # A split begins in the middle of its file.
                    offset, line = offset + where.start, line + where.lines_before()
                raise UserError(unknown(block[position], f"in line {line} of {where} (byte {offset})"))
            before, line = before + len(block.encode()), line + block.count("\n")
            yield ids

    return encode


def chunked_encoder(tokenizer: Tokenizer) -> Encoder:
    """For every other tokenizer: each word is encoded once, by the library's own threads, and then looked up.

    Two to three times as fast on one core as encoding running text, in which the same words come again and again.
    """
    rule = splitting_rule(tokenizer)
    lossless = is_lossless(tokenizer)
    cached: dict[str, list[int]] = {}
    size = 0

    def encode(blocks: Iterable[str], where: object) -> Iterator[Ids]:
        nonlocal size  # Counted on from document to document: there may be many, and short.
        # Said outright, for a later fork (DataLoader workers) would otherwise make the library warn in each of them.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        parts = chunks(blocks, rule, where)
        while batch := list(islice(parts, CHUNKS_AT_ONCE)):
            words = [rule.split(text) if rule else [text] for text in batch]
            # Not by subtracting cached.keys(), which walks through all of them.
            new = [word for word in set(chain.from_iterable(words)) if word not in cached]
            size += sum(map(len, new))
            if size > CHARACTERS_CACHED:
                cached.clear()
                new = list(set(chain.from_iterable(words)))
                size = sum(map(len, new))
            with library_errors(f"{where}: the tokenizer cannot encode it"):
                encoded = tokenizer.encode_batch_fast(new, add_special_tokens=False)
            cached.update((word, encoding.ids) for word, encoding in zip(new, encoded, strict=True))
            for text, split in zip(batch, words, strict=True):
                ids = list(chain.from_iterable(map(cached.__getitem__, split)))
                if not lossless:
                    refuse_loss(tokenizer, ids, text, where)
                yield np.array(ids, dtype=np.uint32)

    return encode


def splitting_rule(tokenizer: Tokenizer) -> Rule | None:
    """Where a text may be cut without changing an id; None where no such place is known.

    White space begins a new word in every pattern of GPT-2's family: in GPT-2's own after anything that is not white
    space, in its successors' at least after letters and digits (they join punctuation with the line breaks after it).
    Merges never cross words. Tokens that a file adds to the vocabulary are sought before that, so none may reach over
    such a place.
    """
    if is_gpt2_like(tokenizer) and tokenizer.normalizer is None:
        rule = BEFORE_WHITE_SPACE
    elif is_byte_pair_family(tokenizer):
        rule = re.compile(r"(?<=[^\W_])(?=[ \n])")
    else:
        return None
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    return None if any(token.rstrip or rule.search(token.content) for token in added) else rule


def chunks(blocks: Iterable[str], rule: Rule | None, where: object) -> Iterator[str]:
    """The same text in chunks of about `CHUNK` characters, cut only where ``rule`` matches.

    Raises:
        UserError: if there is no such place for `LONGEST_CHUNK` characters.
    """
    rest = ""
    for block in blocks:
        rest += block
        while rule is not None and len(rest) > CHUNK:
            cut = _cut(rest, rule)
            if cut is None:
                break
            yield rest[:cut]
            rest = rest[cut:]
        if len(rest) > LONGEST_CHUNK:
            reason = (
                "this tokenizer is not known to give the same ids when a text is cut"
                if rule is None
                else "they hold no white space after a word, the only place where a text may be cut"
            )
            raise UserError(
                f"{where}: more than {LONGEST_CHUNK:,} characters would have to be encoded at once, for {reason}: "
                "divide the file, or use --data.tokenizer char"
            )
    if rest:
        yield rest


def _cut(text: str, rule: Rule) -> int | None:
    nearest = next((i for i in range(CHUNK, 0, -1) if rule.match(text, i)), None)
    if nearest is None and (later := rule.search(text, CHUNK + 1)):
        nearest = later.start()
    return nearest if nearest is None or nearest < len(text) else None
