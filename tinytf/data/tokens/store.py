"""3. Tokens: ids on disk, one flat file per split, memory-mapped, and a description that is written last."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinytf.data.config import cache_write
from tinytf.data.tokenizer import end_of_text_id
from tinytf.errors import UserError

FORMAT = 1
DESCRIPTION = "store.json"
TokenIds = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True)
class TokenStore:
    """Token ids of every split under one folder.

    Attributes:
        dtype: uint16 up to 65,536 entries, uint32 above.
        tokens, bytes: number of ids per split, and of UTF-8 bytes they stand for.
        documents: number of documents per split, if the corpus is split by them.
    """

    folder: Path
    dtype: str
    tokens: dict[str, int]
    bytes: dict[str, int]
    documents: dict[str, int] | None = None

    def split(self, name: str) -> TokenIds:
        """The ids of a split, [tokens], left on disk until they are touched."""
        return np.memmap(self._file(name), dtype=self.dtype, mode="r", shape=(self.tokens[name],))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def is_whole(self) -> bool:
        """Whether the files have the sizes that the description states."""
        item = np.dtype(self.dtype).itemsize
        return all(
            self._file(name).is_file() and self._file(name).stat().st_size == count * item
            for name, count in self.tokens.items()
        )


def open_store(folder: Path, key: str) -> TokenStore | None:
    """The store under this key, or None if there is none that is complete."""
    try:
        said = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if said["format"] != FORMAT or said["key"] != key:
            return None
        store = TokenStore(folder, said["dtype"], said["tokens"], said["bytes"], said.get("documents"))
    except (OSError, ValueError, KeyError, TypeError):
        # Torn or of another version: it is made anew, never guessed at.
        return None
    return store if store.is_whole() else None


def describe_store(
    folder: Path,
    key: str,
    dtype: str,
    tokens: dict[str, int],
    sizes: dict[str, int],
    documents: dict[str, int] | None = None,
) -> TokenStore:
    """Write a store's description, once its files are complete."""
    said = {"format": FORMAT, "key": key, "dtype": dtype, "tokens": tokens, "bytes": sizes, "documents": documents}
    with cache_write(folder / DESCRIPTION) as file:
        file.write(json.dumps(said, indent=1).encode())
    return TokenStore(folder, dtype, tokens, sizes, documents)


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
