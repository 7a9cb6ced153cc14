"""1. Sources: the files that `data.corpus` names, on this machine or behind an address, read decompressed.

fsspec moves and decompresses the bytes of every file; what they hold is documents.py's to say.
"""

from __future__ import annotations

from pathlib import Path

from tinytf.data.sources.addresses import fetch, is_one_web_text, list_remote, require_address
from tinytf.data.sources.files import SourceFile, is_remote, kind_of, local_file, local_paths


def find_files(corpus: str, cache: Path) -> tuple[SourceFile, ...]:
    """The files of a path, a folder (those with a known ending, at any depth), a pattern or an address, in order.

    Raises:
        UserError: if there are none, or one cannot be read.
    """
    if not (corpus.startswith("file://") or is_remote(corpus)):
        return tuple(map(local_file, local_paths(corpus)))
    require_address(corpus)
    if corpus.startswith("file://") or is_one_web_text(corpus):
        return (local_file(fetch(corpus, cache)),)
    return tuple(SourceFile(path, kind_of(path), size, stamp) for path, size, stamp in list_remote(corpus))
