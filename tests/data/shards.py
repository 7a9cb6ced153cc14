"""Documents in files of every kind, and what a store holds of them."""

from __future__ import annotations

import gzip
import json
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tinytf.data.config import CorpusConfig, PreparedCorpus

END = "<|endoftext|>"


def documents(count: int, seed: int = 0) -> list[str]:
    """Texts that are all different, of one to thirty words."""
    rng = random.Random(seed)
    words = [
        "the",
        "of",
        "and",
        "to",
        "in",
        "he",
        "a",
        "was",
        "it",
        "his",
        "is",
        "with",
        "as",
        "I",
        "had",
        "for",
        "at",
        "on",
        "be",
    ]
    return [f"{seed}.{number} " + " ".join(rng.choices(words, k=rng.randint(1, 30))) for number in range(count)]


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps({field: text, "other": 1}) + "\n" for text in texts).encode()
    path.write_bytes(compress(raw, path.suffix))
    return path


def compress(raw: bytes, suffix: str) -> bytes:
    """As gzip or zstd, in two members or frames, as tools that write in parallel do; as it is for another suffix."""
    half = len(raw) // 2
    if suffix == ".gz":
        return gzip.compress(raw[:half]) + gzip.compress(raw[half:])
    if suffix == ".zst":
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        return zstd.compress(raw[:half]) + zstd.compress(raw[half:])
    return raw


def config_of(corpus: str | Path, cache: Path, **changes: Any) -> CorpusConfig:
    return CorpusConfig(**{"corpus": str(corpus), "cache_dir": str(cache), "prepare_processes": 1, **changes})


def texts_of(prepared: PreparedCorpus, split: str) -> list[str]:
    """The documents of a split, in the store's order."""
    text = prepared.tokenizer.decode(prepared.store.split(split).tolist(), skip_special_tokens=False)
    assert text.endswith(END)
    return str(text).split(END)[:-1]


@contextmanager
def serve(folder: Path, **gates: threading.Event) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of the folder, and the requests that it got. GETs of a file with a gate wait for it."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"GET {self.path}")
            gate = gates.get(Path(self.path).name.partition(".")[0])
            if gate is None or gate.wait(60):
                super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", asked
        finally:
            http.shutdown()
            thread.join()
