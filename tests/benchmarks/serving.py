"""`tinytf serve` against llama-cpp-python's server on the same weights: tokens/s of all clients, time to first token.

The bundle of the newest run (`tinytf export --formats onnx-int8,gguf-q8_0` made before) is served by both, one after
the other in each round: its `model_kv.int8.onnx` and its `model.q8_0.gguf`, each with as many threads as
OMP_NUM_THREADS says, and llama.cpp with the batch sizes of its own server. Clients stream 128 tokens each, greedily.

llama-cpp-python is no dependency: `LLAMA_PYTHON=/path/to/python` names an interpreter that has
`llama-cpp-python[server]`; without it only tinytf is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch

from tinytf.errors import UserError
from tinytf.run.directory import resolve_checkpoint

CLIENTS = (1, 4, 16)
TOKENS = 128
PROMPT = "ROMEO:\nBut soft, what light"


def run(args: argparse.Namespace) -> dict[str, Any]:
    threads = torch.get_num_threads()
    bundle = Path(os.environ.get("BUNDLE") or resolve_checkpoint("best").parent / "export")
    ours = [sys.executable, "-m", "tinytf", "serve", "--model", str(bundle / "model_kv.int8.onnx"),
            "--threads", str(threads), "--port"]  # fmt: skip
    servers = {"tinytf": ours}
    if python := os.environ.get("LLAMA_PYTHON"):
        servers["llama-cpp-python"] = [
            python, "-m", "llama_cpp.server", "--model", str(bundle / "model.q8_0.gguf"), "--n_threads", str(threads),
            "--n_threads_batch", str(threads), "--n_ctx", "0", "--verbose", "false",
            "--interrupt_requests", "false", "--port",  # Else a second client ends the answer of the first.
        ]  # fmt: skip
    for path in (Path(command[command.index("--model") + 1]) for command in servers.values()):
        if not path.is_file():
            raise UserError(f"{path}: export it first (tinytf export --ckpt_path best)")
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in servers}
    for _ in range(args.rounds):
        for name, command in servers.items():
            with serving(command) as url:
                asyncio.run(measure(url, 1))  # Warm: the first request allocates.
                for clients in CLIENTS:
                    found[name].setdefault(str(clients), []).append(asyncio.run(measure(url, clients)))
    figures: dict[str, Any] = {}
    for clients in map(str, CLIENTS):
        line = [f"{clients:>2} clients"]
        for name in servers:
            speed, first = (statistics.median(side) for side in zip(*found[name][clients], strict=True))
            figures.setdefault(name, {})[clients] = {"tokens_per_second": speed, "first_token_ms": 1000 * first}
            line.append(f"{name} {speed:,.0f} tokens/s, first token {1000 * first:,.1f} ms")
        print("; ".join(line), flush=True)
    return {"bundle": str(bundle), "megabytes": (bundle / "model_kv.int8.onnx").stat().st_size / 1e6, **figures}


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """A server on a free port, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/v1/models").status_code == 200:
                    break
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


async def measure(url: str, clients: int) -> tuple[float, float]:
    """Tokens a second of all clients together, and the median time to the first token."""
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=clients)) as client:
        began = time.perf_counter()
        answers = await asyncio.gather(*(ask(client, url, number) for number in range(clients)))
        took = time.perf_counter() - began
    return sum(tokens for tokens, _ in answers) / took, statistics.median(first for _, first in answers)


async def ask(client: httpx.AsyncClient, url: str, number: int) -> tuple[int, float]:
    """How many tokens one client got, and when the first one came. An event may hold several tokens."""
    body = {"prompt": PROMPT[: len(PROMPT) - number % 4], "max_tokens": TOKENS, "temperature": 0, "stream": True}
    began, first = time.perf_counter(), 0.0
    async with client.stream("POST", f"{url}/v1/completions", json=body) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: {") and (choices := json.loads(line[6:]).get("choices")):
                first = first or time.perf_counter() - began
                if choices[0]["finish_reason"]:
                    assert choices[0]["finish_reason"] == "length", "the model ends texts: take one without documents"
    return TOKENS, first
