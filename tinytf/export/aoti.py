"""An AOTInductor package: the torch.export program compiled to a library for this kind of processor."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from tinytf.export import tracing
from tinytf.export.pt2 import program
from tinytf.export.quiet import quiet
from tinytf.export.runner import Runner, recomputing
from tinytf.export.subject import Subject


def refusal(subject: Subject) -> str | None:
    """Why it cannot be written here, or None."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"it takes a C++ compiler, and there is no {compiler} here"
    return tracing.refusal(subject)


def write(subject: Subject, path: Path, base: Path | None) -> None:
    """Compile with AOTInductor for this machine into one package."""
    with quiet(), torch.no_grad():
        # Freezing packs the weights in the layout that the products want.
        torch._inductor.aoti_compile_and_package(
            program(subject), package_path=str(path), inductor_configs={"freezing": True}
        )


def open_runner(path: Path, threads: int) -> Runner:
    """The package as PyTorch loads it."""
    with quiet():
        forward = torch._inductor.aoti_load_package(str(path))
    return Runner(f"AOTInductor {torch.__version__}", recomputing(forward), cached=False)
