"""Make opendelta 0.3.2 importable on today's stack.

opendelta imports, at module level, an upload client, a web view, `turtle` and `transformers.deepspeed`. None of them is
used by `DeltaBase`, and none can be taken for granted today, so each is replaced by an empty stand-in while opendelta
is imported. This module is the only place that knows of it: import `DeltaBase` from here.
"""

import importlib
import logging
import sys
import types
import warnings

_STAND_INS = {
    "DeltaCenter": {"OssClient": None},
    "opendelta.utils.interactive.web": {"interactive": None},
    "turtle": {"back": None},
    "transformers.deepspeed": {"deepspeed_config": None, "is_deepspeed_zero3_enabled": lambda: False},
}


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
            return importlib.import_module("opendelta.basemodel").DeltaBase
    finally:
        logging.root.handlers[:] = handlers
        for name, module in previous.items():  # only opendelta sees the stand-ins
            if module is None:
                sys.modules.pop(name)
            else:
                sys.modules[name] = module


DeltaBase = _import_delta_base()
