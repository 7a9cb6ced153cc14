"""`tinytf serve` as a process, on a run of small models."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import torch

from tests.cli.tiny_checkpoint import write_checkpoint
from tests.data.test_examples import CHATML
from tinytf.data.tokenizer import byte_pair_tokenizer

TEXT = "ROMEO: But soft, what light through yonder window breaks?\nIt is the east, and Juliet is the sun. é € 😀 "


def write_run(root: Path) -> Path:
    """A run of the name toy with three checkpoints, whose tokenizer has a chat template. Returns its best one."""
    folder = root / "checkpoints" / "toy" / "version_0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: toy\n")
    tokenizer = byte_pair_tokenizer(iter([TEXT * 3]), 290)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    for step in (10, 20, 30):
        path = folder / f"step-{step:07d}-val_loss-{4 - step / 20:.4f}.ckpt"
        write_checkpoint(path, "bpe", max_seq_len=64, seed=step, step=step)
        content = torch.load(path, weights_only=True)
        generator = torch.Generator().manual_seed(step)
        # Far from uniform, so that a text says which model wrote it.
        for weight in content["state_dict"].values():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
        size = tokenizer.get_vocab_size()
        rows = torch.randn(size, 32, generator=generator) * 0.3
        # At a low temperature no text ends by itself.
        rows[[number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]] = 0.0
        content["state_dict"]["model.embed_tokens.weight"] = rows
        content["tinytf"]["model"]["vocab_size"] = size
        content["tinytf"]["tokenizer"] = tokenizer.to_str()
        content["tinytf"]["chat_template"] = CHATML
        torch.save(content, path)
    return path


class Server:
    """The command in a process of its own, from the line that names its address until `stop`."""

    def __init__(self, folder: Path, *flags: str, **environment: str) -> None:
        command = [sys.executable, "-m", "tinytf", "serve", "--port", "0", "--device", "cpu", *flags]
        self.process = subprocess.Popen(
            command, cwd=folder, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"serving (\S+) at (http://\S+)", line):
                self.model, self.url = found[1], found[2]
                break
        else:
            raise AssertionError("".join(self.lines))
        # What it says later; a full pipe would stop it.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code after the signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(60)
        finally:
            self.process.kill()
        self._reader.join(10)
        return code
