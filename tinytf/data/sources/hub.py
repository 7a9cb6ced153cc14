"""1. Sources: data sets of the Hugging Face Hub, or of a folder that its library knows, streamed by ``datasets``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tinytf.data.sources.files import STORAGE_PACKAGES, raised_by
from tinytf.errors import UserError

HUB = "hf://"
HUB_PACKAGES = (*STORAGE_PACKAGES, "datasets", "huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "pyarrow")
"""Whose exceptions say what is wrong with a data set, its address or its files."""

OPTIONS = ("config", "split", "revision")


@dataclass(frozen=True)
class HubFile:
    """One of the files that a data set is made of. Plain values: it travels to other processes.

    Attributes:
        corpus: as given.
        version: the Hub's commit, or for a folder what its files are.
        number, count: this file among how many.
    """

    corpus: str
    version: str
    number: int
    count: int

    def identity(self) -> list[Any]:
        """What changes when its content may have, in plain types."""
        return [self.corpus, self.version, self.number, self.count]

    def require_unchanged(self) -> None:
        """Raise UserError if a folder was written to since it was found; a commit does not change."""
        name, options = parse_hub(self.corpus)
        if Path(name).is_dir() and hub_version(name, options) != self.version:
            raise UserError(f"{self.corpus}: it changed while it was read: run again")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its rows, as they come."""
        try:
            yield from _stream(self.corpus, self.version).shard(self.count, self.number)
        except Exception as error:
            raise failed(f"corpus {self.corpus}", error) from error


def parse_hub(corpus: str) -> tuple[str, dict[str, str]]:
    """``hf://owner/name?config=…&split=…&revision=…`` as the name and the options; UserError for another option."""
    name, _, query = corpus.removeprefix(HUB).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in OPTIONS:
            raise UserError(f"corpus {corpus}: {option!r} is no option of hf://; there are {', '.join(OPTIONS)}")
    if not name:
        raise UserError(f"corpus {corpus}: name a data set, such as hf://roneneldan/TinyStories?split=train")
    return name, {"split": "train", **options}


def hub_files(corpus: str) -> tuple[HubFile, ...]:
    """The files of a data set; no text is read. UserError without the extra, or if there is no such data set."""
    name, options = parse_hub(corpus)
    version = hub_version(name, options)
    count = _stream(corpus, version).num_shards
    return tuple(HubFile(corpus, version, number, count) for number in range(count))


def hub_version(name: str, options: dict[str, str]) -> str:
    """What changes when a data set may have: its commit, or of a local folder its files' sizes and times."""
    if Path(name).is_dir():
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(repr(stamps).encode()).hexdigest()
    # A branch or tag moves; what is tokenized is named by the commit, so that a change is seen and a kill continues.
    revision = options.get("revision", "")
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    datasets_library(f"{HUB}{name}")
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision or None).sha)
    except Exception as error:
        raise failed(f"corpus {HUB}{name}", error) from error


@lru_cache(maxsize=4)
def _stream(corpus: str, version: str) -> Any:
    datasets = datasets_library(corpus)
    name, options = parse_hub(corpus)
    revision = None if Path(name).is_dir() else version
    try:
        # Streamed: the library's own cache would hold the data set a second time.
        return datasets.load_dataset(
            name, options.get("config"), split=options["split"], revision=revision, streaming=True
        )
    except Exception as error:
        raise failed(f"corpus {corpus}", error) from error


def datasets_library(source: str) -> Any:
    """The package ``datasets``; UserError, naming what needs it, if the extra is not installed."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source}: hf:// and .parquet need the extra corpora: pip install 'tinytf[corpora]'") from None
    datasets.disable_progress_bars()
    # Else it asks a server of its makers to count each load, that of a file on this disk too.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


def failed(where: str, error: Exception, what: str = "") -> UserError:
    """One line for an error of the libraries that read data sets; raises any other, which is our bug.

    A wrong split or config is a ValueError of datasets that names those there are.
    """
    if not (isinstance(error, (OSError, ValueError, UserError)) or raised_by(error, HUB_PACKAGES)):
        raise error
    why = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{where}: {what} ({why})" if what else f"{where}: {why}")
