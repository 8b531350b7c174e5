"""What pyproject.toml cannot say: a wheel holds in pewe/tree/ what a checkout has beside pewe/."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TREE = (
    "task_list.py",
    "pewe_environment.py",
    "tune_*.py",
    "dev_*.py",
    "rank_*.py",
    "get_similarity/*.py",
    "unit_model/*.py",
    "data/*.py",
    "data/task_descriptions.tsv",
    "data/build/*.py",
    "data/mini_*/*.py",
    "data/mini_*/*/*.tsv",
    "checkpoints/mini_*/[!.]*.*",
    "scripts/*/*.toml",
)


def dependencies() -> list[str]:
    """As requirements.txt pins them; of what requirements-transformers4.txt pins too, its version and all between."""
    pinned, older = (pins(Path(f"requirements{name}.txt")) for name in ("", "-transformers4"))
    return [
        f"{name}>={older[name]},<={version}" if name in older else f"{name}=={version}"
        for name, version in pinned.items()
    ]


def pins(path: Path) -> dict[str, str]:
    """Name and version of every requirement."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


class WithTree(build_py):
    """The package and the tree beside it; an editable install has that where it is."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for path in sorted({path for pattern in TREE for path in Path().glob(pattern)}):
            place = Path(self.build_lib, "pewe", "tree", path)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


if __name__ == "__main__":
    setup(cmdclass={"build_py": WithTree}, install_requires=dependencies())
