"""The house: what lies above what, read from the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# From the ground up: a module imports what stands before its own layer, or in it.
LAYERS = (
    ("pewe_environment", "task_list", "unit_model"),  # names and registries, which import nothing of the library
    ("pewe",),  # the modules that lie in pewe/ itself
    ("pewe.deltas.kinds", "pewe.deltas.flags"),  # what is known of a delta without any model
    ("pewe.reporting",),
    ("pewe.deltas",),
    ("pewe.tuning",),
    ("pewe.similarity",),
    ("pewe.merging", "pewe.merging.rules"),
    ("pewe.fusion",),
    ("get_similarity", "unit_model.*", "tune_hps_singletask", "tune_all_ckpt", "dev_all_ckpt"),
    ("pewe.grid", "pewe.__main__", "rank_sources"),
)


def layer_of(module: str) -> int:
    """The layer of a module: that of itself, else of its package."""
    package, _, _ = module.rpartition(".")
    for name in (module, f"{package}.*", package):
        for number, names in enumerate(LAYERS):
            if name in names:
                return number
    raise AssertionError(f"{module} has no layer")


def modules() -> dict[str, Path]:
    """All modules of the library and the commands beside it."""
    paths = [
        *ROOT.glob("*.py"),
        *(path for name in ("pewe", "get_similarity", "unit_model") for path in (ROOT / name).rglob("*.py")),
    ]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()


def imports(path: Path) -> list[str]:
    """The modules of ours that a file imports anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else node.module for name in names]
    return [name for name in found if name in MODULES and name != "pewe"]


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"pewe"}))
def test_nothing_imports_upwards(module):
    above = [name for name in imports(MODULES[module]) if layer_of(name) > layer_of(module)]
    assert not above, f"{module} imports what lies above it"


def test_a_climb_would_be_seen():
    assert "pewe.tuning.session" in imports(MODULES["pewe.tuning.tune"])
    assert layer_of("pewe.tuning.session") > layer_of("pewe.data") and layer_of("pewe.grid.run") == len(LAYERS) - 1


def test_the_library_has_no_circle():
    """No module imports itself through others, at import time or later."""
    after: dict[str, set[str]] = {name: set(imports(path)) for name, path in MODULES.items() if name != "pewe"}
    while free := {name for name, needed in after.items() if not needed & after.keys()}:
        after = {name: needed for name, needed in after.items() if name not in free}
    assert not after, f"a circle among {sorted(after)}"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("pewe.reporting.page", ("torch", "transformers", "opendelta")),
        ("pewe.reporting.tables", ("torch", "transformers", "opendelta")),
        ("pewe.merging.save", ("transformers", "opendelta")),
        ("unit_model.unit_model_others", ("transformers", "opendelta")),
    ],
)
def test_tables_and_merges_load_no_model_code(module, heavy):
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found == "[]\n"


def test_no_file_is_longer_than_a_sitting():
    long = {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 300}
    assert not long


@pytest.mark.parametrize("package", ["pewe.tuning", "pewe.similarity", "pewe.grid"])
def test_a_kind_of_delta_is_not_asked_for_by_name(package):
    """A branch by the one kind that needs more than a state would name it; its hooks and its Kind are asked instead."""
    own = [path for name, path in MODULES.items() if name.startswith(f"{package}.")]
    found = [node for path in own for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    assert own and not [
        node for node in found if isinstance(node, ast.Constant) and node.value in ("pemt", "pemt_source")
    ]
    assert not [node for node in found if isinstance(node, ast.Name | ast.alias) and "Pemt" in ast.unparse(node)]
