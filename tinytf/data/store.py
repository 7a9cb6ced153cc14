"""3. Tokens: ids on disk, one flat file per split, memory-mapped, and a description that is written last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinytf.data.config import cache_write
from tinytf.data.encode import encoder
from tinytf.data.sources import byte_progress
from tinytf.data.splits import Split, TextSpan, split_bytes
from tinytf.data.tokenizer import end_of_text_id
from tinytf.errors import UserError

FORMAT = 1
DESCRIPTION = "store.json"
COPIED_BYTES = 1 << 22
"""A multiple of every dtype's size."""
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


def build_store(folder: Path, key: str, splits: dict[str, Split], tokenizer: Tokenizer) -> TokenStore:
    """Tokenize the splits of plain text into ``folder``.

    Raises:
        UserError: for characters that the tokenizer does not know, and for several documents if it has no token to
            stand between them.
    """
    dtype = ids_dtype(tokenizer)
    separator = separator_of(tokenizer) if any(len(split) > 1 for split in splits.values()) else None
    encode = encoder(tokenizer)
    tokens = {}
    sizes = {name: split_bytes(split) for name, split in splits.items()}
    with byte_progress("tokenizing", sum(sizes.values())) as progress:
        for name, split in splits.items():
            count = 0
            with cache_write(folder / f"{name}.bin") as file:
                for number, span in enumerate(split):
                    if number:
                        count += file.write(np.array([separator], dtype=dtype).tobytes())
                    for ids in encode(_counted(span, progress), span.document.name):
                        count += file.write(ids.astype(dtype).tobytes())
            tokens[name] = count // np.dtype(dtype).itemsize
    # The key speaks of the text as it was when its checksum was taken.
    for split in splits.values():
        for span in split:
            span.document.require_unchanged()
    return describe_store(folder, key, dtype, tokens, sizes)


def concatenate(
    folder: Path, key: str, dtype: str, parts: dict[str, list[tuple[Path, str]]], table: npt.NDArray[np.uint32] | None
) -> dict[str, int]:
    """Write each split from the ids in files, one after the other; returns the number of ids per split.

    Args:
        folder, key: of the store.
        dtype: of the store's ids.
        parts: of each split, in order, the files and the dtype of their ids.
        table: the id of each number in the files, if they hold code points.
    """
    tokens = {}
    total = sum(path.stat().st_size for files in parts.values() for path, _ in files)
    with byte_progress("writing token ids", total) as progress:
        for name, files in parts.items():
            tokens[name] = 0
            with cache_write(folder / f"{name}.bin") as output:
                for path, kind in files:
                    with path.open("rb") as file:
                        for block in iter(lambda file=file: file.read(COPIED_BYTES), b""):  # type: ignore[misc]
                            ids = np.frombuffer(block, dtype=kind)
                            ids = ids if table is None else table[ids]
                            output.write(ids.astype(dtype, copy=False).tobytes())
                            tokens[name] += len(ids)
                            progress.update(len(block))
    return tokens


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


def _counted(span: TextSpan, progress: Any) -> Iterator[str]:
    for block in span.blocks():
        progress.update(len(block.encode()))
        yield block
