"""Where a command begins: this is imported before all else, so that `--help` costs the flags alone (pyproject.toml sorts it).

What computes takes seconds to load. Where only help is asked for, these modules are stood in for, as in Sphinx, which
reads the documentation of a module without what it imports (`autodoc_mock_imports`). A command that runs has none of that.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from pewe.cli import main

__all__ = ["main"]

HEAVY = ("torch", "transformers", "opendelta", "safetensors", "pandas", "sklearn")


class _AnyName(type):
    """Classes that have any attribute: another such class."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)


class StandIn(metaclass=_AnyName):
    """A class to inherit from or to annotate with, or a function; an instance is a decorator that changes nothing."""

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __call__(self, decorated):
        return decorated


def stand_in(name: str) -> type:
    """A class of this name."""
    return _AnyName(name, (StandIn,), {})


class StandInModule(ModuleType):
    """A module, and a package, that has any name."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)


class StandIns(MetaPathFinder, Loader):
    """Finds a stand-in for the heavy modules and all that is in them."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in HEAVY else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


if {"-h", "--help"} & set(sys.argv[1:]) and HEAVY[0] not in sys.modules:
    sys.meta_path.insert(0, StandIns())
