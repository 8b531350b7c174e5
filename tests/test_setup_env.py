"""scripts/setup_env.sh with a stand-in for the interpreter, which notes what it is asked to do."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT

# `-m venv --clear F` makes F/bin/python, a copy of itself; its prefix is the folder above bin; `-m pip` needs the file pip
STAND_IN = r"""#!/usr/bin/env bash
here="$(cd "$(dirname "$0")/.." && pwd)"
case "$*" in
  *"import torch"*) exit 1 ;;
  *"sys.version_info"*) exit 0 ;;
  *"sys.prefix"*) echo "$here"; exit 0 ;;
  "-m pip --version") [ -e "$here/pip" ]; exit ;;
esac
echo "$*" | sed 's|/tmp/[^ ]*|LIST|' >>"$LOG"
case "$*" in *"-r /tmp"*) cp "$(echo "$*" | sed 's|.* -r \(/tmp[^ ]*\).*|\1|')" "$LOG.list" ;; esac
case "$*" in
  "-m venv --clear"*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; touch "$4/pip" ;;
esac
"""
REQUIREMENTS = [path.name for path in ROOT.glob("requirements*.txt")]
VENV = ["-m venv --clear .venv"]
INSTALL = [
    "-m pip install --quiet --disable-pip-version-check -r LIST -r requirements-development.txt",
    "-m pip install --quiet --disable-pip-version-check --no-deps -r requirements-no-deps.txt",
    "-m pip install --quiet --disable-pip-version-check --no-deps --editable .",
]


@pytest.fixture
def setup(tmp_path):
    """`setup()` runs the script in a copy of what it needs and returns what the stand-in was asked; `setup.venv` is .venv."""
    repository, base = tmp_path / "repository", tmp_path / "base" / "bin" / "python3"
    (repository / "scripts").mkdir(parents=True)
    base.parent.mkdir(parents=True)
    for name in ("scripts/setup_env.sh", *REQUIREMENTS, "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, repository / name)
    base.write_text(STAND_IN)
    base.chmod(0o755)
    (tmp_path / "base" / "pip").touch()
    log = tmp_path / "log"

    def run(**variables: str) -> list[str]:
        log.write_text("")
        environment = {**os.environ, "LOG": str(log), **variables}
        command = ["bash", repository / "scripts" / "setup_env.sh", "--python", base]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return log.read_text().splitlines()

    run.venv, run.requirements, run.list = repository / ".venv", repository / "requirements.txt", tmp_path / "log.list"
    return run


def test_it_is_made_once_and_filled_again_where_the_requirements_change(setup):
    assert setup() == VENV + INSTALL
    assert setup() == []
    setup.requirements.write_text("torch==3\n")
    assert setup() == INSTALL


def no_pip(venv) -> None:
    (venv / "pip").unlink()
    (venv / ".pewe-requirements").unlink()


def broken_interpreter(venv) -> None:
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/nowhere/python3.11")


def interpreter_of_another_folder(venv) -> None:
    """As where the making was stopped before pyvenv.cfg: it would install into the system."""
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").write_text('#!/usr/bin/env bash\ncase "$*" in *sys.prefix*) echo /usr ;; esac\n')
    (venv / "bin" / "python").chmod(0o755)


def empty_folder(venv) -> None:
    shutil.rmtree(venv)
    venv.mkdir()


@pytest.mark.parametrize("spoil", [no_pip, broken_interpreter, interpreter_of_another_folder, empty_folder])
def test_a_half_made_environment_is_made_again(setup, spoil):
    setup()
    spoil(setup.venv)
    assert setup() == VENV + INSTALL
    assert setup() == []


def test_what_was_stopped_while_it_was_filled_is_filled_again(setup):
    setup()
    (setup.venv / ".pewe-requirements").unlink()
    assert setup() == INSTALL


def test_another_transformers_takes_the_place_of_the_pinned_one_and_back(setup):
    older = [line for line in (ROOT / "requirements-transformers4.txt").read_text().splitlines() if line[0] != "#"]
    assert setup() == VENV + INSTALL
    pinned = setup.list.read_text().splitlines()
    other = [INSTALL[0] + " -r requirements-transformers4.txt", *INSTALL[1:]]
    assert setup(TRANSFORMERS="4") == other and setup(TRANSFORMERS="4") == []
    replaced = {line for line in pinned if line not in setup.list.read_text().splitlines()}
    assert {line.split("==")[0] for line in replaced} == {line.split("==")[0] for line in older} >= {"transformers"}
    assert not replaced & set(older)
    assert setup() == INSTALL and setup.list.read_text().splitlines() == pinned
    with pytest.raises(subprocess.CalledProcessError) as error:
        setup(TRANSFORMERS="3")
    assert error.value.returncode == 2 and error.value.stderr.startswith(b"error: TRANSFORMERS=3: there is no ")
