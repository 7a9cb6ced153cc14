"""Everything public says what it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import tinytf


def undocumented() -> Iterator[str]:
    """Public modules, classes, functions, and methods that neither say what they do nor override what does."""
    for found in pkgutil.walk_packages(tinytf.__path__, "tinytf."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        if not module.__doc__:
            yield found.name
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != found.name:
                continue
            if inspect.isfunction(value) and not value.__doc__:
                yield f"{found.name}.{name}"
            elif inspect.isclass(value):
                yield from undocumented_in(value)


def undocumented_in(kind: type) -> Iterator[str]:
    # A dataclass without words of its own gets its signature as docstring.
    if not kind.__doc__ or kind.__doc__.startswith(f"{kind.__name__}("):
        yield f"{kind.__module__}.{kind.__qualname__}"
    for name, value in vars(kind).items():
        method = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if name.startswith("_") or not (inspect.isfunction(method) or isinstance(method, property)):
            continue
        if not inspect.getdoc(getattr(kind, name)) and not inspect.getdoc(method):
            yield f"{kind.__module__}.{kind.__qualname__}.{name}"


def test_everything_public_has_a_docstring() -> None:
    assert list(undocumented()) == []


def test_what_has_none_would_be_found() -> None:
    class Bare:
        def method(self) -> None: ...

    assert [name.rsplit(".", 1)[-1] for name in undocumented_in(Bare)] == ["Bare", "method"]
