"""The registry: every module of this package that has a METHOD is a method. There is no list of them anywhere.

A new method is two files, its mathematics here and its fit in `guard.fit`. Modules are looked for on the search path of
this package and nowhere else: no setting, file or request names code to be loaded.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from guard import interventions
from guard.interventions.method import Method


def methods() -> Mapping[str, Method]:
    """All methods by name, in alphabetical order. Imports their modules, and with them torch, but no fit.

    Raises TypeError for a METHOD that is none, ValueError when two have the same name.
    """
    return _found(tuple(interventions.__path__))


def edit_methods() -> Mapping[str, Method]:
    """The methods whose packs are activation edits: those that a policy, and so a recipe, can name."""
    return {name: method for name, method in methods().items() if method.rows is not None}


@lru_cache(maxsize=8)
def _found(folders: tuple[str, ...]) -> Mapping[str, Method]:
    """The methods of the modules in `folders`, the search path of the package."""
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(folders):
        name = f"{interventions.__name__}.{module.name}"
        method = getattr(importlib.import_module(name), "METHOD", None)
        if method is None:
            continue
        if not isinstance(method, Method):
            raise TypeError(f"{name}.METHOD is no Method")
        if method.name in found:
            raise ValueError(f"{name}: there is a method {method.name} already")
        found[method.name] = method
    return MappingProxyType(dict(sorted(found.items())))
