"""Make opendelta 0.3.2 importable on today's stack.

`DeltaBase` needs little of opendelta, but its package imports every model, and with them an upload client, a web view, `turtle`,
`transformers.deepspeed`, and classes that transformers 5 has no more. So the package's `__init__` is not run: `opendelta` is
given here as a package with the few names that `DeltaBase` asks it for, and what else it imports is replaced by an empty
stand-in meanwhile. This module is the only place that knows of it: import `DeltaBase` from here.
"""

import importlib
import logging
import sys
import types
import warnings
from importlib.machinery import PathFinder

from pewe.errors import UserError

_STAND_INS = {
    "DeltaCenter": {"OssClient": None},
    "opendelta.utils.interactive.web": {"interactive": None},
    "turtle": {"back": None},
    "transformers.deepspeed": {"deepspeed_config": None, "is_deepspeed_zero3_enabled": lambda: False},
    "transformers.file_utils": {"PushToHubMixin": type("PushToHubMixin", (), {})},
}


def _package() -> types.ModuleType:
    """`opendelta` without what its `__init__` imports."""
    found = PathFinder.find_spec("opendelta")
    if found is None:
        raise UserError("opendelta is not installed: pip install --no-deps -r requirements-no-deps.txt")
    package = types.ModuleType("opendelta")
    package.__path__, package.__spec__ = list(found.submodule_search_locations), found
    package.__version__ = "0.3.2"
    return package


def _import_delta_base() -> type:
    importlib.import_module("transformers")  # before the stand-ins: transformers looks at its own submodules
    previous = {name: sys.modules.get(name) for name in _STAND_INS}
    for name, attributes in _STAND_INS.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes, __file__="<stand-in>")
        sys.modules[name] = module
    handlers = logging.root.handlers[:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = sys.modules["opendelta"] = _package()
            package.logging = importlib.import_module("opendelta.utils.logging")
            package.SaveLoadMixin = type("SaveLoadMixin", (), {})  # the upload client's
            return importlib.import_module("opendelta.basemodel").DeltaBase
    finally:
        logging.root.handlers[:] = handlers
        for name, module in previous.items():  # only opendelta sees the stand-ins
            if module is None:
                sys.modules.pop(name)
            else:
                sys.modules[name] = module


DeltaBase = _import_delta_base()
