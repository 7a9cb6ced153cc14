"""3. Tokens: ids on disk, one flat file per split, memory-mapped, and a description that is written last."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinytf.data.config import cache_write
from tinytf.data.sources.files import BLOCK
from tinytf.data.tokenizer import end_of_text_id
from tinytf.errors import UserError
from tinytf.utils.files import reason, sha256_of

FORMAT = 2
DESCRIPTION = "store.json"
TokenIds = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenStore:
    """Token ids of every split under one folder.

    Attributes:
        dtype: uint16 up to 65,536 entries, uint32 above.
        tokens, bytes: number of ids per split, and of UTF-8 bytes they stand for.
        documents: number of documents per split, if the corpus is split by them.
        sha256: of each split's file.
        start_token: an id that occurs in training, for text that starts from nothing.
        examples, learned_tokens: number per split, of prompts and completions; `bytes` are then those of completions.
    """

    folder: Path
    dtype: str
    tokens: dict[str, int]
    bytes: dict[str, int]
    documents: dict[str, int] | None
    sha256: dict[str, str]
    start_token: int
    examples: dict[str, int] | None = None
    learned_tokens: dict[str, int] | None = None

    def split(self, name: str) -> TokenIds:
        """The ids of a split, [tokens], left on disk until they are touched."""
        return np.memmap(self._file(name), dtype=self.dtype, mode="r", shape=(self.tokens[name],))

    def learned(self, name: str) -> npt.NDArray[np.uint8]:
        """Which ids of a split are learned, [tokens], left on disk until they are touched."""
        return np.memmap(self._file(f"{name}.learned"), dtype=np.uint8, mode="r", shape=(self.tokens[name],))

    def lengths(self, name: str) -> npt.NDArray[np.uint32]:
        """Of each example of a split its ids, and those before the first that is learned: [examples, 2]."""
        return np.fromfile(self._file(f"{name}.examples"), dtype=np.uint32).reshape(-1, 2)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def is_whole(self) -> bool:
        """Whether the files have the sizes that the description states."""
        sizes = {name: count * np.dtype(self.dtype).itemsize for name, count in self.tokens.items()}
        for name, count in (self.examples or {}).items():
            sizes |= {f"{name}.learned": self.tokens[name], f"{name}.examples": 8 * count}
        return all(self._file(name).is_file() and self._file(name).stat().st_size == n for name, n in sizes.items())

    def is_undamaged(self) -> bool:
        """Whether the files can be read to their end, and have their checksums."""
        for name, expected in self.sha256.items():
            try:
                why = "" if sha256_of(self._file(name)) == expected else "another checksum"
            except OSError as error:  # A bad block of the disk.
                why = reason(error)
            if why:
                log.warning("the token ids in %s are damaged, and made again (%s)", self._file(name), why)
                return False
        return True


def open_store(folder: Path, key: str) -> TokenStore | None:
    """The store under this key, or None if there is none that is complete and undamaged.

    A file may change within its size, on a bad disk or by hand, and would be trained on without a word. Every process
    checks for itself, under the lock of `prepare`: it maps what it has checked, and none is made again meanwhile.
    """
    try:
        said = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if said["format"] != FORMAT or said["key"] != key:
            return None
        store = TokenStore(folder, said["dtype"], said["tokens"], said["bytes"], said["documents"],
                           said["sha256"], said["start_token"], said.get("examples"),
                           said.get("learned_tokens"))  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        # Torn or of another version: it is made anew, never guessed at.
        return None
    if not store.is_whole():
        return None
    # 0.14 s per 100 MB on one core of an EPYC, which has instructions for it. The processes of a machine, which
    # torchrun starts at once, come one after the other: 8 of them with 10 GB of ids take 2 minutes in all.
    if not store.is_undamaged():
        with contextlib.suppress(OSError):  # Of a cache that is read-only: the first write says so.
            (folder / DESCRIPTION).unlink()
        return None
    return store


def describe_store(
    folder: Path,
    key: str,
    tokenizer: Tokenizer,
    tokens: dict[str, int],
    sizes: dict[str, int],
    documents: dict[str, int] | None = None,
    **of_examples: dict[str, int],
) -> TokenStore:
    """Write a store's description, once its files are complete.

    Args:
        of_examples: ``examples`` and ``learned_tokens`` of a `TokenStore`, if it has them.
    """
    dtype = ids_dtype(tokenizer)
    files = [name + ending for name in tokens for ending in (("", ".learned", ".examples") if of_examples else ("",))]
    sums = {name: sha256_of(folder / f"{name}.bin") for name in files}
    start = choose_start_token(folder / "train.bin", dtype, tokenizer)
    said = {"format": FORMAT, "key": key, "dtype": dtype, "tokens": tokens, "bytes": sizes, "documents": documents,
            "sha256": sums, "start_token": start, **of_examples}  # fmt: skip
    with cache_write(folder / DESCRIPTION) as file:
        file.write(json.dumps(said, indent=1).encode())
    return TokenStore(folder, dtype, tokens, sizes, documents, sums, start, **of_examples)


def choose_start_token(train: Path, dtype: str, tokenizer: Tokenizer) -> int:
    """The id from which a model may write without a prompt: the first of these that it sees in training.

    The end of a document, after which one begins; a line feed; else the text's first id. A model of a single text
    never sees the token between documents, and one whose text has only empty lines may know no line feed by itself.
    """
    ids: TokenIds = np.memmap(train, dtype=dtype, mode="r") if train.stat().st_size else np.zeros(1, dtype=dtype)
    # Ċ is how byte-level tokenizers write a line feed.
    for number in (end_of_text_id(tokenizer), tokenizer.token_to_id("\n"), tokenizer.token_to_id("Ċ")):
        # In blocks: the comparison of a whole split would take half its size of memory.
        if number is not None and any((ids[at : at + BLOCK] == number).any() for at in range(0, len(ids), BLOCK)):
            return number
    return int(ids[0])


def ids_dtype(tokenizer: Tokenizer) -> str:
    """The smallest type that holds every id."""
    return "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "uint32"


def separator_of(tokenizer: Tokenizer) -> int:
    """The token between documents.

    Raises:
        UserError: if the tokenizer has none.
    """
    separator = end_of_text_id(tokenizer)
    if separator is None:
        raise UserError(
            "the corpus has several documents and the tokenizer no special token like <|endoftext|> to stand "
            "between them: join the files into one, or use --data.tokenizer bpe or char"
        )
    return separator
