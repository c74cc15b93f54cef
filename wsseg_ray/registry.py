"""Registries: the variants of one kind of thing by name, such as backbones or distance metrics.

A recipe names a variant in one of three ways:

    vgg16                  a name of the registry
    torchvision:resnet50   a family of the registry, and what the family is asked for
    my_module:my_variant   the attribute of a module of the user's own: a file beside the recipe, in the current folder,
                           or an installed package

A registry keeps import paths, so asking whether a name exists imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Registry(Generic[T]):
    """The variants of one kind of thing.

    Arguments:
        kind: what messages call a variant, such as "backbone".
        variants: by name, the variant itself or its import path. A name that ends with ":" is a family: its variant is
            a function that takes what follows the colon and returns a variant.
        contract: the class of the variants; None: they are functions, or classes with the same methods.
    """

    def __init__(self, kind: str, variants: Mapping[str, T | str], contract: type | None = None) -> None:
        self.kind = kind
        self._contract = contract
        self._variants = dict(variants)

    @property
    def names(self) -> list[str]:
        """The registered names, in order."""
        return list(self._variants)

    def variants(self) -> list[T]:
        """All registered variants, without those of families, in order. Imports them."""
        return [self.get(name) for name in self._variants if not name.endswith(":")]

    def check(self, value: str) -> str:
        """The value, if it can name a variant. Imports none of the variants.

        Raises ValueError, which says which names exist, or that the user's module is not found.
        """
        family, colon, argument = value.partition(":")
        if value in self._variants and not value.endswith(":"):
            return value
        if colon and argument and family + colon in self._variants:
            return value
        if not IMPORT_PATH.fullmatch(value):
            there = ", ".join(f"{name}NAME" if name.endswith(":") else name for name in self._variants)
            raise ValueError(
                f"no {self.kind} '{value}'; there are {there or 'none'}, or give one of your own as module:attribute"
            )
        if not _own_modules:
            raise ValueError(f"no {self.kind} '{value}': modules of your own are refused (--no-plugins)")
        top = family.partition(".")[0]
        if top not in sys.modules and importlib.util.find_spec(top) is None:
            raise ValueError(
                f"no {self.kind} '{value}': there is no module {top}; it must lie beside the recipe, in the current "
                "folder, or be installed"
            )
        return value

    def get(self, value: str) -> T:
        """The variant that a value names.

        Raises ValueError as `check` does, and where the module or its attribute cannot be imported.
        """
        self.check(value)
        family, colon, argument = value.partition(":")
        if value in self._variants:
            return self._import(self._variants[value])
        if family + colon in self._variants:
            return self._import(self._variants[family + colon])(argument)
        found = self._import(value)
        if self._contract is not None and not isinstance(found, self._contract):
            raise ValueError(
                f"the {self.kind} '{value}' is a {type(found).__name__}, and must be a {self._contract.__name__}: see "
                "docs/extending.md"
            )
        return found

    def _import(self, variant: Any) -> Any:
        if not isinstance(variant, str):
            return variant
        module, _, attribute = variant.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"the {self.kind} '{variant}' cannot be imported: {error}") from error


def registry(path: str) -> Registry[Any]:
    """A registry by its import path, such as `wsseg_ray.backbones:BACKBONES`."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


_folders: list[str] = []
_own_modules = True


def refuse_own_modules() -> None:
    """From now on a name that would import a module of the user's own is refused: for recipes and runs of others."""
    global _own_modules
    _own_modules = False


def look_in(*folders: str | Path) -> None:
    """Let import paths name modules of folders, such as the one that holds the recipe."""
    for folder in map(str, folders):
        if folder not in _folders:
            _folders.append(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def own_code(value: Any) -> list[str]:
    """Digests of the files of the user's own modules that a value of the recipe names, or each of a list's values."""
    if isinstance(value, list):
        return [digest for one in value for digest in own_code(one)]
    if not isinstance(value, str) or not IMPORT_PATH.fullmatch(value):
        return []
    top = value.partition(":")[0].partition(".")[0]
    found = [file for folder in _folders for file in (Path(folder, f"{top}.py"), Path(folder, top)) if file.exists()]
    files = sorted(found[0].rglob("*.py")) if found and found[0].is_dir() else found[:1]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def folders() -> list[str]:
    """The folders of the user's own modules, in the order of `look_in`: for the processes that work for this one."""
    return list(_folders)
