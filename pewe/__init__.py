"""pewe: Parameter-Efficient Weight Ensembling (Lv et al., ACL 2023), reproduced and extended."""

import os
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = (
    "Agg"  # only files are drawn: a notebook's backend, or one that is not there, does not matter
)
_HERE = Path(__file__).resolve().parent
INSTALLED = (_HERE / "tree").is_dir()  # from a wheel, in which what lies beside this package lies in it (setup.py)
ROOT = _HERE / "tree" if INSTALLED else _HERE.parent
if str(ROOT) not in sys.path:  # the commands that lie beside this package, whatever the working folder
    sys.path.insert(0, str(ROOT))
if not INSTALLED:
    import pewe_environment  # noqa: F401
