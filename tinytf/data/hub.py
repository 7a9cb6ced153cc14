"""Data sets of the Hugging Face Hub, or of a folder that its library knows, streamed through ``datasets``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tinytf.errors import UserError

PREFIX = "hf://"
OPTIONS = ("config", "split", "revision")


@dataclass(frozen=True)
class HubShard:
    """One of the files that a data set is made of. Plain values: it travels to other processes.

    Attributes:
        corpus: as given.
        version: the Hub's commit, or for a folder what its files are.
        number, count: this shard among how many.
    """

    corpus: str
    version: str
    number: int
    count: int

    def identity(self) -> list[Any]:
        """What changes when its content may have, in plain types."""
        return [self.corpus, self.version, self.number, self.count]

    def require_unchanged(self) -> None:
        """Raise UserError where a folder was written to since it was found; a commit does not change."""
        name, options = named(self.corpus)
        if Path(name).is_dir() and version_of(name, options) != self.version:
            raise UserError(f"{self.corpus}: it changed while it was read: run again")


def named(corpus: str) -> tuple[str, dict[str, str]]:
    """``hf://owner/name?config=…&split=…&revision=…`` as the name and the options.

    Raises:
        UserError: for an option that there is not.
    """
    name, _, query = corpus.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in OPTIONS:
            raise UserError(f"corpus {corpus}: {option!r} is no option of hf://; there are {', '.join(OPTIONS)}")
    if not name:
        raise UserError(f"corpus {corpus}: name a data set, such as hf://roneneldan/TinyStories?split=train")
    return name, {"split": "train", **options}


def shards_of(corpus: str) -> tuple[HubShard, ...]:
    """The shards of a data set. No text is read.

    Raises:
        UserError: where the extra is missing, or there is no such data set.
    """
    name, options = named(corpus)
    version = version_of(name, options)
    count = _stream(corpus, version).num_shards
    return tuple(HubShard(corpus, version, number, count) for number in range(count))


def hub_rows(shard: HubShard) -> Iterator[dict[str, Any]]:
    """The rows of one shard, as they come."""
    try:
        yield from _stream(shard.corpus, shard.version).shard(shard.count, shard.number)
    except (OSError, ValueError, RuntimeError) as error:
        raise _failed(shard.corpus, error) from error


def version_of(name: str, options: dict[str, str]) -> str:
    """What changes when a data set may have: its commit, or of a local folder its files' sizes and times."""
    if Path(name).is_dir():
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(repr(stamps).encode()).hexdigest()
    revision = options.get("revision", "")
    return revision if re.fullmatch(r"[0-9a-f]{40}", revision) else _commit(name, revision or None)


def _commit(name: str, revision: str | None) -> str:
    _library()
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:  # requests', httpx's and the library's own, one for each way to fail.
        raise _failed(f"{PREFIX}{name}", error) from error


@lru_cache(maxsize=4)
def _stream(corpus: str, version: str) -> Any:
    datasets = _library()
    name, options = named(corpus)
    revision = None if Path(name).is_dir() else version
    try:
        # Streamed: the library's own cache would hold the data set a second time.
        return datasets.load_dataset(
            name, options.get("config"), split=options["split"], revision=revision, streaming=True
        )
    except Exception as error:  # As above; a wrong split or config is a ValueError that names those there are.
        raise _failed(corpus, error) from error


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("hf:// needs the extra datasets: pip install 'tinytf[datasets]'") from None
    datasets.disable_progress_bars()
    return datasets


def _failed(corpus: str, error: Exception) -> UserError:
    return UserError(f"corpus {corpus}: {' '.join(str(error).split()) or type(error).__name__}")
