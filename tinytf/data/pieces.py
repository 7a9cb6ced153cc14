"""Token ids of long texts: cut where a cut cannot change an id, encoded in parallel, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinytf.data.corpus import code_points
from tinytf.data.tokenizer import (
    END_OF_TEXT,
    is_by_character,
    is_byte_pair_family,
    is_gpt2_like,
    is_lossless,
    refuse_loss,
    unknown,
)
from tinytf.errors import UserError

PIECE = 1 << 16
"""Characters encoded at a time by one thread."""
PIECES_AT_ONCE = 16
LONGEST_PIECE = 1 << 24
"""Characters without a place to cut after which a text is refused: it would have to be held whole."""

Ids = npt.NDArray[np.uint32]
MaySplit = Callable[[str, int], bool]


class Encoder(Protocol):
    """Token ids of one document's text, given as blocks; ``where`` names it in errors."""

    def __call__(self, blocks: Iterable[str], where: str) -> Iterator[Ids]: ...


def encoder(tokenizer: Tokenizer) -> Encoder:
    """The fastest way to encode a text that is known to give the ids of encoding it whole."""
    if is_by_character(tokenizer):
        return by_table(tokenizer)
    return by_pieces(tokenizer)


def by_table(tokenizer: Tokenizer) -> Encoder:
    """For a character tokenizer: one look-up a character, twenty times as fast as the tokenizer itself."""
    known = tokenizer.get_vocab(with_added_tokens=False)
    nothing = np.uint32(0xFFFFFFFF)
    table = np.full(0x110000, nothing, dtype=np.uint32)
    for character, number in known.items():
        if character != END_OF_TEXT:
            table[ord(character)] = number

    def encode(blocks: Iterable[str], where: str) -> Iterator[Ids]:
        before = 0
        for block in blocks:
            ids = table[code_points(block)]
            if ids.max(initial=0) == nothing:
                position = int(np.argmax(ids == nothing))
                offset = before + len(block[:position].encode())
                raise UserError(unknown(block[position], f"at byte {offset} of {where}"))
            before += len(block.encode())
            yield ids

    return encode


def by_pieces(tokenizer: Tokenizer) -> Encoder:
    """For every other tokenizer: pieces encoded by the library's own threads."""
    may_split = splitting_rule(tokenizer)
    lossless = is_lossless(tokenizer)

    def encode(blocks: Iterable[str], where: str) -> Iterator[Ids]:
        # Said outright, for a later fork (DataLoader workers) would otherwise make the library warn in each of them.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        parts = pieces(blocks, may_split, where)
        while batch := list(islice(parts, PIECES_AT_ONCE)):
            encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            for text, encoding in zip(batch, encoded, strict=True):
                if not lossless:
                    refuse_loss(tokenizer, encoding.ids, text, where)
                yield np.array(encoding.ids, dtype=np.uint32)

    return encode


def splitting_rule(tokenizer: Tokenizer) -> MaySplit | None:
    """Where a text may be cut without changing an id; None where no such place is known.

    White space other than at a text's start begins a new word in every pattern of GPT-2's family: in GPT-2's own after
    anything that is not white space, in its successors' at least after letters and digits (they join punctuation with
    the line breaks after it). Merges never cross words.
    """
    if is_gpt2_like(tokenizer) and tokenizer.normalizer is None:
        return before_white_space
    if is_byte_pair_family(tokenizer):
        return lambda text, i: text[i] in " \n" and text[i - 1].isalnum()
    return None


def before_white_space(text: str, i: int) -> bool:
    """Whether GPT-2's pattern begins a word at i whatever stands around it."""
    return text[i] in " \n" and not text[i - 1].isspace()


def pieces(blocks: Iterable[str], may_split: MaySplit | None, where: str) -> Iterator[str]:
    """The same text in pieces of about `PIECE` characters, cut only where ``may_split`` allows.

    Raises:
        UserError: where there is no such place for `LONGEST_PIECE` characters.
    """
    held = ""
    for block in blocks:
        held += block
        while may_split is not None and len(held) > PIECE:
            cut = _cut(held, may_split)
            if cut is None:
                break
            yield held[:cut]
            held = held[cut:]
        if len(held) > LONGEST_PIECE:
            reason = (
                "this tokenizer is not known to give the same ids when a text is cut"
                if may_split is None
                else "they hold no white space after a word, the only place where a text may be cut"
            )
            raise UserError(
                f"{where}: more than {LONGEST_PIECE:,} characters would have to be encoded at once, for {reason}: "
                "divide the file, or use --data.tokenizer char"
            )
    if held:
        yield held


def _cut(text: str, may_split: MaySplit) -> int | None:
    nearest = next((i for i in range(PIECE, 0, -1) if may_split(text, i)), None)
    return nearest or next((i for i in range(PIECE + 1, len(text)) if may_split(text, i)), None)
