"""What a package offers is loaded when it is asked for, name by name.

An ``__init__`` imports what its package offers below ``if TYPE_CHECKING:``, where readers, editors
and type checkers find it, and ends with ``load_when_asked(__name__)``. None of these imports is
run; each name is looked up there by the first who asks for it, and its function is then checked as
`fedjax_lite.checks.calls` says. So a program waits for what it uses, and for nothing else.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import sys
import types
from typing import Any

from fedjax_lite.checks.calls import check_export


def load_when_asked(package: str) -> None:
    """Has a package load its names when they are asked for.

    Args:
      package: its ``__name__``; its ``__init__`` has an ``__all__``.

    Example:
      >>> import fedjax_lite as fl
      >>> isinstance(fl, Package), "krum" in dir(fl), fl.krum.__module__
      (True, True, 'fedjax_lite.aggregation.krum')
    """
    sys.modules[package].__class__ = Package


class Package(types.ModuleType):
    """A package whose names are loaded when they are asked for."""

    def __getattr__(self, name: str) -> Any:
        """A name that nobody asked for before: what the package offers, or a module in it."""
        module, attribute = origins(self.__name__).get(name, (f"{self.__name__}.{name}", ""))
        if not attribute and (name[:1] in ("", "_") or importlib.util.find_spec(module) is None):
            raise AttributeError(
                f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self
            )
        if attribute:  # as the statement does it: from module import attribute
            value = check_export(getattr(__import__(module, fromlist=[attribute]), attribute))
        else:
            value = importlib.import_module(module)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """Python sets a module that was imported in its package; a function of its name stays."""
        hides = (
            isinstance(value, types.ModuleType) and origins(self.__name__).get(name, ("", ""))[1]
        )
        if not hides:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """What the package offers, loaded or not."""
        return sorted({*self.__all__, *(name for name in self.__dict__ if name[:2] == "__")})


@functools.cache
def origins(package: str) -> dict[str, tuple[str, str]]:
    """Where each name of a package comes from: module and attribute, "" for the module itself.

    Example:
      >>> origins("fedjax_lite.crypto")["secure_sum"], origins("fedjax_lite")["crypto"]
      (('fedjax_lite.crypto.secagg.round', 'secure_sum'), ('fedjax_lite.crypto', ''))
    """
    spec = sys.modules[package].__spec__
    source = spec.loader.get_source(package)  # type: ignore[union-attr]
    if source is None:
        raise ImportError(f"{package} reads its own source, which is not there; install it whole")
    found = {}
    for block in ast.parse(source).body:
        if isinstance(block, ast.If):  # if TYPE_CHECKING
            for line in block.body:
                assert isinstance(line, ast.ImportFrom)
                assert line.module is not None
                for name in line.names:
                    is_module = line.module == package
                    place = f"{package}.{name.name}" if is_module else line.module
                    found[name.asname or name.name] = (place, "" if is_module else name.name)
    return found
