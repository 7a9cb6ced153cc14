"""A text from a URL: fetched once, verified, kept by its checksum."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urlparse

from tinytf.data.cache import written_whole
from tinytf.data.progress import byte_progress
from tinytf.errors import UserError

SCHEMES = ("http", "https", "file")
TIMEOUT = 60.0
BLOCK = 1 << 20


def is_url(corpus: str) -> bool:
    """Whether a corpus is named by a URL that can be fetched."""
    return urlparse(corpus).scheme in SCHEMES and "://" in corpus


def fetch(corpus: str, cache: Path) -> Path:
    """The local copy of ``<url>#sha256=<hex>`` (pip's notation), downloaded only where it is not there yet.

    Raises:
        UserError: without a checksum, where the address does not answer, or where the sum is another one; nothing is
            kept then.
    """
    url, fragment = urldefrag(corpus)
    expected = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if expected is None:
        raise UserError(
            f"corpus {corpus}: a URL needs the checksum of its content, 64 hexadecimal digits, at its end: "
            f"{url}#sha256=<the first word that sha256sum prints for the file>"
        )
    sha256 = expected[1].lower()
    name = PurePosixPath(unquote(urlparse(url).path)).name or "text"
    path = cache / "downloads" / sha256 / name
    if path.is_file() and file_sha256(path) == sha256:
        return path
    _download(url, path, sha256)
    return path


def file_sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _download(url: str, path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as response,
            byte_progress(f"downloading {path.name}", _length(response.headers.get("Content-Length"))) as progress,
            written_whole(path) as file,
        ):
            while block := response.read(BLOCK):
                digest.update(block)
                file.write(block)
                progress.advance(len(block))
            # Inside the context: a wrong file must never take its name.
            if digest.hexdigest() != sha256:
                raise UserError(
                    f"corpus {url}: its sha256 is {digest.hexdigest()}, not {sha256} as given: "
                    "the file has changed or the download was cut; nothing was kept"
                )
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise UserError(f"corpus {url}: it could not be fetched ({error})") from error


def _length(header: str | None) -> int:
    return int(header) if header and header.isdecimal() else 0
