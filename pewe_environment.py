"""The interpreter that has the packages: the first import of every file that is started by its name, and of pewe in a checkout.

A command that was started by another interpreter, in a plain shell say, goes on in that of PYTHON or of .venv. Where neither
has the packages, one line says how to make it. Standard library only, of any Python 3. The files of this name in unit_model/
and get_similarity/ are links to this one: those folders have the repository's root in their path by it.
"""

import importlib.util
import os
import shutil
import sys

ROOT = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 (any Python 3)
PACKAGES = ("torch", "transformers", "pandas", "tqdm")
ADVICE = "run: bash scripts/setup_env.sh, then: source .venv/bin/activate"
GONE_ON = "PEWE_GONE_ON"  # set where a command has gone on already


def settle():
    """Put the root into the path, and see to the packages."""
    if ROOT not in sys.path:
        sys.path.insert(0, ROOT)
    before = os.environ.pop(GONE_ON, "")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    words = getattr(sys, "orig_argv", [sys.executable, *sys.argv])[1:]
    if not missing or not words[0:1] or not words[0]:  # a notebook has no command to go on with
        return
    other = shutil.which(os.environ.get("PYTHON") or os.path.join(ROOT, ".venv", "bin", "python"))  # noqa: PTH118
    if other and not before and words[0] != "-c":
        os.environ[GONE_ON] = "1"
        os.execv(other, [other, *words])
    print(f"error: {sys.executable} has no {', '.join(missing)}; {ADVICE}", file=sys.stderr)
    sys.exit(2)


settle()
