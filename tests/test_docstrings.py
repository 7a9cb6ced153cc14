"""Every module and every public class says what it is; a function does where its name does not."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import tinytf


def undocumented(module: ModuleType) -> Iterator[str]:
    if not module.__doc__:
        yield module.__name__
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        # A dataclass without words of its own gets its signature as docstring.
        if inspect.isclass(value) and (not value.__doc__ or value.__doc__.startswith(f"{name}(")):
            yield f"{module.__name__}.{name}"


def test_modules_and_classes_have_docstrings() -> None:
    names = [found.name for found in pkgutil.walk_packages(tinytf.__path__, "tinytf.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    assert [name for module in modules for name in undocumented(module)] == []


def test_one_without_would_be_found() -> None:
    module = ModuleType("bare")
    module.Bare = type("Bare", (), {"__module__": "bare"})  # type: ignore[attr-defined]
    assert list(undocumented(module)) == ["bare", "bare.Bare"]
