"""llama.cpp, through llama-cpp-python, in a process of its own: a file that makes it crash ends that process alone.

The other end is llama_child.py. llama.cpp's AMX kernel died of SIGSEGV on five of five Q8_0 files, and took the whole
export with it; onnxruntime 1.32 did not crash on any of 4,500 damaged graphs, and runs in this process.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tinytf.data.tokenizer import encode
from tinytf.export.parity.runner import Feed, Runner

CHILD = Path(__file__).with_name("llama_child.py")


class LlamaProcess:
    """A GGUF file open in a child process, with the context that it states.

    Raises:
        RuntimeError: from any method, if llama.cpp raised or crashed; names the error or the signal.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        # By its path, so that it starts without torch, which takes seconds; with this process's sys.path in place of
        # the working directory, where a file could stand in for a package.
        code = f"import sys, runpy; sys.path[:] = {sys.path!r}; runpy.run_path({str(CHILD)!r}, run_name='__main__')"
        self._child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.version: str = self.ask("open", str(path.resolve()), threads)
        except RuntimeError:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the child's `Llama` returns."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            pickle.dump((method, arguments), self._child.stdin)
            self._child.stdin.flush()
            error, answer = pickle.load(self._child.stdout)
        except (BrokenPipeError, EOFError):
            raise RuntimeError(f"llama.cpp {_ending(self._child.wait())}") from None
        if error:
            raise RuntimeError(error)
        return answer

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.communicate()


def open_llama_cpp(path: Path, threads: int) -> Runner:
    """The file in llama.cpp, one sequence at a time."""
    llama = LlamaProcess(path, threads)

    def start(batch_size: int) -> Feed:
        llama.ask("reset")
        return lambda tokens: torch.from_numpy(llama.ask("logits", tokens[0].tolist()))[None]

    return Runner(f"llama.cpp (llama-cpp-python {llama.version})", start, max_batch=1, close=llama.close)


def tokenizer_problems(tokenizer: Tokenizer, text: str, path: Path) -> list[str]:
    """Whether llama.cpp, if it is installed, gives a text the same ids and gives it back."""
    if find_spec("llama_cpp") is None:
        return []
    llama = LlamaProcess(path)
    try:
        ids, back = llama.ask("round_trip", text.encode())
    finally:
        llama.close()
    wanted = encode(tokenizer, text)
    if ids != wanted:
        at = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), min(len(ids), len(wanted)))
        return [f"llama.cpp's token ids differ from token {at} on"]
    return [] if back.decode("utf-8", errors="replace") == text else ["llama.cpp does not give back the text"]


def _ending(code: int) -> str:
    """A child's exit code in words."""
    if code >= 0:
        return f"ended its process with exit code {code}"
    return f"crashed ({signal.Signals(-code).name})"
