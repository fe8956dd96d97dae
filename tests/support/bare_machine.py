"""A machine that has only some packages: the others cannot be imported in this process."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def hide(packages: Iterable[str], extra: Iterable[str]) -> None:
    """Hide all installed packages but these with what they require, and the extra ones alone."""
    kept = {*_with_requirements(packages), *map(canonicalize_name, extra)}
    tops = importlib.metadata.packages_distributions()
    hidden = {
        top
        for top, names in tops.items()
        # An editable install has a finder of its own, __editable__...
        if not any(canonicalize_name(name) in kept for name in names) and not top.startswith("_")
    }
    hidden.discard("artmancer")
    version = importlib.metadata.version
    find_spec = importlib.util.find_spec

    def find_version(name: str) -> str:
        if canonicalize_name(name) not in kept:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] in hidden:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    importlib.metadata.version = find_version
    importlib.util.find_spec = lambda name, package=None: (
        None if name.split(".")[0] in hidden else find_spec(name, package)
    )
    # A class with the two methods is a finder; its stub asks for more.
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]


def _with_requirements(packages: Iterable[str]) -> set[str]:
    """Return the names of packages and of all that they require, directly or not."""
    names: set[str] = set()
    waiting = [*packages]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in names:
            continue
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        names.add(name)
        waiting += [
            requirement.name
            for requirement in map(Requirement, lines)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""})
        ]
    return names
