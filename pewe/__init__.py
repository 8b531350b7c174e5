"""pewe: Parameter-Efficient Weight Ensembling (Lv et al., ACL 2023), reproduced and extended."""

import os
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = (
    "Agg"  # only files are drawn: a notebook's backend, or one that is not there, does not matter
)
_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:  # the commands that lie beside this package, whatever the working folder
    sys.path.insert(0, _ROOT)
