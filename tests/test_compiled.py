"""Modules that are compiled where there is a .pxd beside them: the same as their source, and not older."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parents[1]
TYPED = sorted(
    path.relative_to(PROJECT)
    for folder in ("pymodel", "vfu_server")
    for path in (PROJECT / folder).rglob("*.pxd")
    if path.with_suffix(".py").exists()
)


def compiled(typed: Path) -> ModuleType:
    """The module as it is imported, where that is the compiled one."""
    module = importlib.import_module(".".join(typed.with_suffix("").parts))
    assert module.__file__ is not None
    if not module.__file__.endswith(".so"):
        pytest.skip("not compiled here: COMPILED=no")
    return module


def from_source(typed: Path) -> ModuleType:
    """The same module from its .py."""
    source = PROJECT / typed.with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"uncompiled_{typed.stem}", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def surface(module: ModuleType) -> dict[str, set[str]]:
    """The public methods of each class that the module makes."""
    return {
        name: {
            method
            for method in dir(content)
            if not method.startswith("_") and callable(getattr(content, method))
        }
        for name, content in vars(module).items()
        if isinstance(content, type) and content.__module__ == module.__name__
    }


@pytest.mark.parametrize("typed", TYPED, ids=str)
def test_is_up_to_date(typed: Path) -> None:
    built = compiled(typed).__file__
    assert built is not None
    for source in (typed, typed.with_suffix(".py")):
        newer = (PROJECT / source).stat().st_mtime > Path(built).stat().st_mtime
        assert not newer, f"{source} is newer than what was compiled of it: run `make ext`"


def inner() -> set[str]:
    """The methods that only compiled code sees: `cdef` in a .pxd."""
    return {
        name
        for typed in TYPED
        for name in re.findall(r"^    cdef [^(\n]*?(\w+)\(", (PROJECT / typed).read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize("typed", TYPED, ids=str)
def test_offers_what_the_source_does(typed: Path) -> None:
    """All of it, but for what is there to be called without the interpreter."""
    ours, theirs = surface(compiled(typed)), surface(from_source(typed))
    assert ours.keys() == theirs.keys()
    for name, methods in theirs.items():
        assert ours[name] <= methods
        assert methods - ours[name] <= inner()
