"""The child process of llama_cpp.py: it imports nothing of tinytf and answers pickled requests from stdin on stdout."""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
from typing import Any


class NoChat:
    """In the place of what compiles a file's chat template, which is a stranger's code: nothing here is a chat."""

    def __init__(self, **_: Any) -> None:
        pass

    def to_chat_handler(self) -> None:
        """None is called only if a chat is asked for."""


class Llama:
    """A GGUF file in llama.cpp."""

    def open(self, path: str, threads: int) -> str:
        """Load a file with the context that it states; returns the version of llama-cpp-python."""
        import llama_cpp

        # llama-cpp-python 0.3.36 takes llama.cpp's warnings for errors and prints them; what fails raises.
        self._no_log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._no_log, ctypes.c_void_p(0))
        llama_cpp.llama_chat_format.Jinja2ChatFormatter = NoChat
        self.llama = llama_cpp.Llama(
            path,
            n_ctx=0,  # That of the file.
            verbose=False,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            # Its default, float16, moves logits by 2e-3 in a trained model; float32 differs by 2.4e-5.
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            flash_attn=False,
        )
        return str(llama_cpp.__version__)

    def reset(self) -> None:
        """Forget the sequence."""
        self.llama.reset()

    def logits(self, ids: list[int]) -> Any:
        """Read more ids; their logits ``[new, vocab_size]`` as a numpy array."""
        past = self.llama.n_tokens
        self.llama.eval(ids)
        return self.llama.scores[past : self.llama.n_tokens].copy()

    def round_trip(self, text: bytes) -> tuple[list[int], bytes]:
        """A text's token ids, and the text they stand for."""
        ids = self.llama.tokenize(text, add_bos=False, special=False)
        return ids, self.llama.detokenize(ids)


def serve() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What llama.cpp prints must not mix with the answers.
    llama = Llama()
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply: tuple[str | None, Any] = (None, getattr(llama, method)(*arguments))
        except Exception as error:
            reply = (f"{type(error).__name__}: {error}", None)
        pickle.dump(reply, answers)
        answers.flush()


if __name__ == "__main__":
    serve()
