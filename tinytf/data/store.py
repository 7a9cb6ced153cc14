"""Token ids on disk: one flat file a split, memory-mapped, and a description that is written last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tinytf.data.cache import written_whole
from tinytf.data.pieces import encoder
from tinytf.data.progress import ByteProgress, byte_progress
from tinytf.data.splits import Segment, Split, split_bytes
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
        tokens, bytes: a split's number of ids, and of UTF-8 bytes they stand for.
        documents: a split's number of documents, where the corpus is split by them.
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
    """The store under this key, or None where there is none that is whole."""
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
    """Tokenise the splits into ``folder``. A second process may do the same at once: both write the same bytes.

    Raises:
        UserError: for characters that the tokenizer does not know, and for several documents where it has no token to
            stand between them.
    """
    dtype = ids_dtype(tokenizer)
    separator = separator_of(tokenizer) if any(len(split) > 1 for split in splits.values()) else None
    encode = encoder(tokenizer)
    tokens = {}
    sizes = {name: split_bytes(split) for name, split in splits.items()}
    with byte_progress("tokenising", sum(sizes.values())) as progress:
        for name, split in splits.items():
            count = 0
            with written_whole(folder / f"{name}.bin") as file:
                for number, segment in enumerate(split):
                    if number:
                        count += file.write(np.array([separator], dtype=dtype).tobytes())
                    for ids in encode(_counted(segment, progress), segment.document.name):
                        count += file.write(ids.astype(dtype).tobytes())
            tokens[name] = count // np.dtype(dtype).itemsize
    # The key speaks of the text as it was when its checksum was taken.
    for split in splits.values():
        for segment in split:
            segment.document.require_unchanged()
    return describe_store(folder, key, dtype, tokens, sizes)


def describe_store(
    folder: Path,
    key: str,
    dtype: str,
    tokens: dict[str, int],
    sizes: dict[str, int],
    documents: dict[str, int] | None = None,
) -> TokenStore:
    """Say that a store is whole, once its files are."""
    said = {"format": FORMAT, "key": key, "dtype": dtype, "tokens": tokens, "bytes": sizes, "documents": documents}
    with written_whole(folder / DESCRIPTION) as file:
        file.write(json.dumps(said, indent=1).encode())
    return TokenStore(folder, dtype, tokens, sizes, documents)


def ids_dtype(tokenizer: Tokenizer) -> str:
    """The smallest type that holds every id."""
    return "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "uint32"


def separator_of(tokenizer: Tokenizer) -> int:
    """The token between documents.

    Raises:
        UserError: where the tokenizer has none.
    """
    separator = end_of_text_id(tokenizer)
    if separator is None:
        raise UserError(
            "the corpus has several documents and the tokenizer no special token like <|endoftext|> to stand "
            "between them: join the files into one, or use --data.tokenizer bpe or char"
        )
    return separator


def _counted(segment: Segment, progress: ByteProgress) -> Iterator[str]:
    for block in segment.blocks():
        progress.advance(len(block.encode()))
        yield block
