"""The units of an experiment: fixed stacks, parts of it by several processes, results from elsewhere. No test needs Ray."""

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from test_steps import SUITE, World, without_pictures

from pewe.backbone import frozen_backbone, load_backbone
from pewe.data import lines_digest, read_examples
from pewe.deltas.attach import attach_delta
from pewe.errors import UserError
from pewe.files import PARTS, hold, patient, read_table
from pewe.grid import cluster
from pewe.grid import run as reproduce
from pewe.grid.config import Config
from pewe.grid.progress import Place
from pewe.grid.schedule import Outcome, Schedule, Unit
from pewe.grid.simulate import in_time
from pewe.grid.split import part_of
from pewe.grid.step import Made
from pewe.places import check_free, check_place
from pewe.reporting.stored import SOURCES
from pewe.tuning.config import TuneConfig
from pewe.tuning.plan import stacks

INITS = ["Random", "Loss"]


@pytest.fixture(scope="module")
def once(tiny_data, tmp_path_factory) -> Path:
    """The experiment, carried out by one process: three tasks in stacks of two."""
    folder = tmp_path_factory.mktemp("once")
    (folder / "steps.toml").write_text(SUITE.format(model=ROOT / "checkpoints/mini_t5", data=tiny_data))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_pictures(patch)
        World(folder).run(init=INITS)
    return folder


@pytest.fixture
def empty(once, tmp_path, monkeypatch) -> World:
    """The same suite in another folder, where nothing is done."""
    shutil.copy(once / "steps.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    without_pictures(monkeypatch)
    return World(tmp_path)


def relative(world: World) -> dict:
    """What it has made, by names without the place."""
    return {name.replace(str(world.folder), ""): content for name, content in world.contents().items()}


def config(**flags) -> Config:
    return Config(**{"suite": "steps.toml", "delta": ["adapter"], "seeds": [1], "init": INITS, **flags})


def test_what_a_stack_holds_does_not_depend_on_what_is_finished():
    runs = [SimpleNamespace(batch_size=b, length=n) for n, b in ((9, 8), (3, 4), (5, 8), (7, 8), (1, 8))]
    found = stacks(runs, lambda run: run.length, TuneConfig(stack=2))
    assert [[(run.batch_size, run.length) for run in stack] for stack in found] == [
        [(4, 3)],
        [(8, 1), (8, 5)],
        [(8, 7), (8, 9)],
    ]


def test_three_parts_make_the_tables_of_one_run(once, empty, capsys, monkeypatch):
    monkeypatch.setattr("pewe.grid.parts.BLOCK", 2)  # the matrix in two parts
    for _ in range(8):
        for number in (1, 2, 3):
            reproduce.run(config(part=f"{number}/3"))
        if capsys.readouterr().out.count("0 wait") == 3:
            break
    assert not (empty.results / "cells.tsv").exists()
    assert not list(empty.base.rglob(PARTS))
    empty.run(init=INITS)
    assert relative(empty) == relative(World(once))


def test_cells_tell_the_lines_of_their_runs(once, tiny_data):
    cells = read_table(once / "results/steps/cells.tsv", ["train_lines", "test_lines"])
    assert len(cells) == 9
    for row in cells.itertuples():
        full, folder = row.init == SOURCES, tiny_data / row.task
        train = folder / f"{row.task}_full_train.tsv" if full else folder / f"{row.prefix}_train.tsv"
        assert row.train_lines == lines_digest(read_examples(train))
        assert row.test_lines == lines_digest(read_examples(folder / f"{row.prefix}_test.tsv"))


def test_each_unit_belongs_to_one_part(empty, capsys):
    """Three tunings of two stacks and what puts them together, a matrix, an ensemble."""
    reproduce.run(config(part="1/1"))
    said = capsys.readouterr()
    assert said.out == "part 1/1: 11 units done; 0 wait for it or for others\n"
    assert " cells, " in said.err.splitlines()[-1]  # a part shows how far it is, too


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none(text):
    with pytest.raises(UserError, match="--part must be I/N"):
        part_of(text)


def test_a_part_and_the_whole_do_not_work_at_once(empty):
    folder = empty.folder / "checkpoints/steps"
    with hold(folder), pytest.raises(UserError, match="checkpoints/steps is in use by process"):
        reproduce.run(config(part="1/2"))
    with hold(folder / PARTS / "1_of_2"), pytest.raises(UserError, match="1_of_2 is in use by process"):
        reproduce.run(config())
    check_free(folder)


def test_a_patient_process_waits_and_says_for_whom(tmp_path, caplog):
    hold_it = "with hold(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(1)"
    script = f"import sys, time\nfrom pathlib import Path\nfrom pewe.files import hold\n{hold_it}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    other = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, env=environment)
    other.stdout.readline()
    with pytest.raises(UserError, match=f"in use by process {other.pid}"), hold(tmp_path):
        pass
    with patient(), hold(tmp_path):
        assert other.wait() == 0


def test_results_of_elsewhere_are_taken_where_they_fit(once, empty, capsys, monkeypatch):
    shutil.copytree(once / "checkpoints/steps", empty.folder / "other")
    (empty.folder / "other/adapter/seed_1/from_Loss/step.json").unlink()
    spoiled = next((empty.folder / "other/adapter/seed_1/from_Random").rglob("checkpoint-best.pt"))
    spoiled.write_bytes(b"spoiled")
    reproduce.run(config(collect_from=["other"]))
    printed = capsys.readouterr().out
    assert (
        "taken: other/adapter/seed_1/sources\n" in printed and "taken: other/adapter/seed_1/weights/Loss\n" in printed
    )
    assert "refused: other/adapter/seed_1/from_Random: " in printed and "was changed after it was written" in printed
    whole, taken = relative(World(once)), relative(empty)
    assert {name: one for name, one in whole.items() if "/lr_" not in name or name in taken} == taken
    empty.change("train_iters = 6", "train_iters = 3")
    reproduce.run(config(collect_from=["other"], init=["Random"]))
    assert "refused: other/adapter/seed_1/sources: 'train_iters' was 6, is 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="--collect_from nowhere: there is no such folder"):
        reproduce.run(config(collect_from=["nowhere"]))


def test_a_frozen_backbone_is_loaded_once_and_takes_any_delta(tiny_backbone):
    config = TuneConfig(model=str(tiny_backbone), device="cpu", adapter_size=4, prefix_num=5, prefix_r=4)
    one, other = frozen_backbone(config), frozen_backbone(config)
    delta = attach_delta(one.model, config)
    attach_delta(other.model, replace(config, tune_method="prefix"))
    names = {name for name, _ in one.model.named_parameters()} - {name for name, _ in other.model.named_parameters()}
    assert len(names) == len(delta.named) and one.model.shared.weight is other.model.shared.weight
    assert load_backbone(config).model.shared.weight is not one.model.shared.weight


def test_without_ray_a_clear_word(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"need Ray: pip install -r requirements-cluster\.txt"):
        cluster.load_ray()


def test_a_file_system_that_locks(tmp_path):
    check_place(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


class Stub:
    """A step without files."""

    def __init__(self, name: str, needs=(), parts=(), wrong: str = ""):
        self.folder, self.name, self.needs, self.cells, self.config = Path(name), name, needs, 1, None
        self.parts, self.begun, self.wrong = SimpleNamespace(names=lambda config: list(parts)), 0, wrong

    def missing(self, serves=None):
        return "new"

    def lacking(self):
        return self.wrong

    def begin(self):
        self.begun += 1

    def made_from(self):
        return {}


def test_units_begin_when_all_that_they_need_has_ended(monkeypatch):
    sources = Stub("sources", parts="01")
    matrix, weights = Stub("matrix", (sources,), parts="01"), None
    weights = Stub("weights", (sources, matrix))
    last = Stub("last", (weights,))
    grid = SimpleNamespace(step=lambda kind: sources, flags={"tasks": ["a"]})
    monkeypatch.setattr("pewe.grid.schedule.plan", lambda grid, inits: [sources, matrix, weights, last])
    schedule, order = Schedule([grid], []), []
    work = list(schedule)
    while work:
        unit = work.pop()  # in any order
        order.append(unit.name)
        schedule.ended(unit, Outcome(Made([])))
        work += list(schedule)
    assert sorted(order[:2]) == ["sources [0]", "sources [1]"] and order[2] == "sources"
    assert sorted(order[3:5]) == ["matrix [0]", "matrix [1]"] and order[5:] == ["matrix", "weights", "last"]
    assert sources.begun == matrix.begun == last.begun == 1 and not schedule.failed


def test_a_unit_that_fails_is_a_failed_step_with_its_cause(monkeypatch):
    sources = Stub("sources")
    grid = SimpleNamespace(step=lambda kind: sources, flags={"tasks": ["a"]}, leave_out=None)
    monkeypatch.setattr("pewe.grid.schedule.plan", lambda grid, inits: [sources])
    schedule = Schedule([grid], [])
    schedule.ended(schedule.next(), Outcome(cause="out of memory"))
    assert schedule.failed == {"sources": "out of memory"} and schedule.next() is None


def test_the_time_on_devices_by_hand():
    one = Stub("one")
    two, three = Stub("two", (one,)), Stub("three", (one,))
    steps, took = [one, two, three], {Path("one"): (4, 8.0), Path("two"): (1, 5.0), Path("three"): (1, 3.0)}
    assert in_time(steps, took, 1)[0] == 16 and in_time(steps, took, 2)[0] == 4 + 5
    seconds, path = in_time(steps, took, 100)
    assert seconds == 2 + 5 and path == [one, two]


def test_nothing_of_a_grid_begins_before_its_sources_have_ended():
    """They tell what is left out: in_time is the time that the schedule takes, though a step from Random needs no source."""
    sources, start, other = Stub("sources"), Stub("from_Random"), Stub("other_sources")
    steps, took = [sources, start, other], {Path("sources"): (1, 10.0), Path("from_Random"): (1, 3.0)}
    took[Path("other_sources")] = (1, 5.0)
    first = {Path("sources"): sources, Path("from_Random"): sources, Path("other_sources"): other}
    assert in_time(steps, took, 3, first) == (13, [sources, start]) and in_time(steps, took, 1, first)[0] == 18
    assert in_time(steps, took, 2, first)[0] == 13  # a device that is free takes the other sources, not from_Random
    assert in_time([start], took, 3, first) == (3, [start])  # sources that are done are not waited for


TIMED_OUT = "The current node timed out during startup.\nMore."


@pytest.mark.parametrize(
    ("address", "cause", "tries", "said"),
    [
        ("", TIMED_OUT, 3, "Ray did not start on this machine in 3 tries; other work keeps it busy: {line}"),
        ("", "No space left.", 1, "Ray did not start on this machine: {line}"),
        ("a:1", TIMED_OUT, 1, "--ray_address a:1: Ray is not reached: {line}"),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(address, cause, tries, said, monkeypatch):
    began = []

    def init(*address, **flags):
        began.append(address)
        raise Exception(cause)

    monkeypatch.setattr(cluster, "load_ray", lambda: SimpleNamespace(init=init, shutdown=lambda: None))
    with pytest.raises(UserError) as error, cluster.connected("2", address, on_gpu=False):
        pass
    assert str(error.value) == said.format(line=cause.splitlines()[0]) and len(began) == tries


def test_a_ray_that_is_late_starts_in_the_end(monkeypatch, caplog):
    began, ended = [], []

    def init(*address, **flags):
        began.append(len(ended))
        if len(began) < 3:
            raise Exception(TIMED_OUT)

    ray = SimpleNamespace(init=init, shutdown=lambda: ended.append(1), cluster_resources=lambda: {"CPU": 2.0})
    monkeypatch.setattr(cluster, "load_ray", lambda: ray)
    with cluster.connected("2", "", on_gpu=False) as (_, needs):
        assert needs == {"num_cpus": 1, "num_gpus": 0, "slots": 2}
    assert began == [0, 1, 2] and "timed out during startup. Trying again (2 of 3)" in caplog.text


@dataclass(frozen=True)
class Hired:
    """A worker."""

    about: SimpleNamespace = field(hash=False)


class Ray:
    """Of Ray what a team asks for; what `ends` maps an answer to comes, or (an error) is raised."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, ends: dict):
        self.ends, self.killed, self.hired = ends, [], 0

    def wait(self, answers, **_):
        return [answer for answer in answers if answer in self.ends], []

    def get(self, answer):
        if isinstance(self.ends[answer], Exception):
            raise self.ends[answer]
        return self.ends[answer]

    def kill(self, worker):
        self.killed.append(worker)

    def cluster_resources(self):
        return {"CPU": 2.0}

    def remote(self, kind):
        def hire(*_):
            self.hired += 1
            return Hired(SimpleNamespace(remote=lambda: f"about {self.hired}"))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=hire))


def test_a_worker_with_an_error_gives_its_device_back(tmp_path):
    """It may live on, with a device that the next one waits for; and that one has a name of its own."""
    unit, ray = Unit(Stub("one")), Ray({"a": RuntimeError("lost"), "about 1": ("here", "")})
    team = cluster.Team(ray, {"num_cpus": 1, "num_gpus": 0, "slots": 2}, tmp_path)
    team.names, team.busy = {"first": "here #1", "second": "here #2"}, {"a": ("first", unit), "b": ("second", unit)}
    team.asked = {"first": "x"}
    assert list(team.ended(0)) == [(unit, None, Place())]
    assert ray.killed == ["first"] and team.names == {"second": "here #2"} and not team.asked
    team.hire()
    team.welcome()
    assert ray.hired == 1 and sorted(team.names.values()) == ["here #1", "here #2"] and len(team.idle) == 1


def test_a_worker_that_does_not_begin_gives_its_device_back(tmp_path):
    ray = Ray({"about": RuntimeError("lost")})
    team = cluster.Team(ray, {"num_cpus": 1, "num_gpus": 0, "slots": 2}, tmp_path)
    team.coming = {"about": "first"}
    team.welcome()
    assert ray.killed == ["first"] and not team.coming and not team.idle


SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
SBATCH = """#!/usr/bin/env bash
export SLURM_JOB_ID=17 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=localhost SLURM_SUBMIT_DIR="$PWD"
exec bash "$@"
"""
SCONTROL = "#!/usr/bin/env bash\necho 127.0.0.1\n"
NO_RAY = """#!/usr/bin/env bash
[ "$1" = symmetric-run ] || exit 0
while [ "$1" != -- ]; do echo "ray: $1"; shift; done
shift
exec "$@"
"""
PYTHON = '#!/usr/bin/env bash\n[ "$1" = -c ] || echo "python: $*"\n'


def stand_ins(folder: Path, **programs: str) -> dict[str, str]:
    """An environment in which these programs come first."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_the_slurm_script_starts_ray_over_the_allocation(tmp_path):
    programs = {"srun": SRUN, "sbatch": SBATCH, "scontrol": SCONTROL, "ray": NO_RAY, "python": PYTHON}
    environment = stand_ins(tmp_path / "bin", **programs) | {"PYTHON": str(tmp_path / "bin/python")}
    command = ["sbatch", "scripts/slurm/reproduce.sbatch", "--suite", "mini"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "ray: 127.0.0.1:20017" in lines and lines[lines.index("ray: --min-nodes") + 1] == "ray: 1"
    assert lines[-1] == "python: -m pewe.grid --devices all --ray_address 127.0.0.1:20017 --suite mini"
    (tmp_path / "bin/ray").unlink()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "pip install -r requirements-cluster.txt" in done.stderr


def test_names_of_units():
    assert (
        Unit(Stub("mini/sources"), "3").name == "mini/sources [3]" and Unit(Stub("mini/sources")).name == "mini/sources"
    )
