"""Bytes out of .gz and .zst files, in bounded memory, a file that was cut short found out."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from tinytf.errors import UserError

PACKED = (".gz", ".zst")
CHUNK = 1 << 16
LARGEST_WINDOW = 1 << 31
"""What zstd --ultra --long=31 writes; the library's own limit is 128 MB."""


def unpacked(raw: BinaryIO, packed: str, name: str) -> BinaryIO:
    """What a file holds; reading it raises EOFError where the file was cut short."""
    if packed == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))
    if packed == ".zst":
        return cast(BinaryIO, io.BufferedReader(Zstd(raw, name), 4 * CHUNK))
    return raw


class Counted(io.RawIOBase):
    """A file that tells how many bytes each read took from it."""

    def __init__(self, raw: BinaryIO, on_read: Callable[[int], None]) -> None:
        self.raw, self.on_read = raw, on_read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.raw.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.raw.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the file, and tell how much was read."""
        read = self.raw.read(len(buffer))
        buffer[: len(read)] = read
        self.on_read(len(read))
        return len(read)


class Zstd(io.RawIOBase):
    """The frames of a .zst file one after the other.

    The library's own reader ends without a word where the last frame is cut short.
    """

    def __init__(self, raw: BinaryIO, name: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{name}: .zst needs the extra corpora: pip install 'tinytf[corpora]'") from None
        self._raw, self._error = raw, zstandard.ZstdError
        self._zstd = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        self._frame: Any = None
        self._packed = b""
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with unpacked bytes.

        Raises:
            EOFError: where the last frame is cut short, which zstandard's own reader passes over.
        """
        while not self._rest:
            self._packed = self._packed or self._raw.read(CHUNK)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self._rest = memoryview(self._next())
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _next(self) -> bytes:
        self._frame = self._frame or self._zstd.decompressobj()
        try:
            text: bytes = self._frame.decompress(self._packed)
        except self._error as error:
            raise EOFError(str(error)) from error
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return text
