"""A small sound world: backbones, data, and every command of the suite with its clean result, made when first asked for.

A command names the places that it reads in braces, {t5} or {sources}; all that it writes goes below its working folder.
A place is an input (tests/fuzz/places.py), or the name of a command: the folder that this command writes.
"""

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.places import FIRST, INPUTS, TASKS
from tests.fuzz.process import Outcome, run

DATA = "--model {t5} --task_dir {data} --device cpu --max_input_length 24 --max_output_length 6 --quiet"
SIZES = (
    "--adapter_size 2 --lora_r 2 --lora_alpha 4 --prefix_num 2 --prefix_r 2 --expert_rank 2 --target_adapter_size 2 "
    "--task_descriptions {descriptions.tsv}"
)
TUNE = (
    f"{DATA} {SIZES} --predict_batch_size 4 --bsz_list 4 --learning_rate_list 1e-2 --train_iters 2 --valid_interval 1"
)
BOTH = "--do_train --do_predict"
ALL = "--tasks " + " ".join(TASKS)
SCORE = f"{DATA} {SIZES} {ALL} --predict_batch_size 2 --no-pictures --source_ckpt_path {{sources}} --output_dir out"
MERGE = f"{ALL} --quiet --source_ckpt_path {{sources}} --save_ckpt_path out"


@dataclass(frozen=True)
class Command:
    """A command line; the module and name of its configuration; the place that `out` is a copy of before it starts."""

    line: str
    config: str
    start: str = ""

    def words(self, places: Callable[[str], Path]) -> list[str]:
        """The words of the command line, every {place} replaced by its folder or file."""
        return [word if "{" not in word else _filled(word, places) for word in shlex.split(self.line)]


def _filled(word: str, places: Callable[[str], Path]) -> str:
    before, name = word.split("{")
    name, after = name.split("}")
    return f"{before}{places(name)}{after}"


def tuning(flags: str, script: str = "tune_hps_singletask", kind: str = "pewe.tuning.tune:TuneConfig") -> Command:
    """A command of tuning."""
    return Command(f"{script}.py {TUNE} --output_dir out {flags}", kind)


def measure(name: str, flags: str = "", kind: str = "SimilarityConfig") -> Command:
    """A command that scores sources on targets."""
    return Command(f"get_similarity/get_{name}.py {SCORE} {flags}", f"pewe.similarity.config:{kind}")


def ensemble(name: str, flags: str = "") -> Command:
    """A command that makes ensembles."""
    return Command(f"unit_model/unit_model_{name}.py {MERGE} {flags}", f"unit_model.unit_model_{name}:Config")


PEMT = f"--experts {TASKS[1]} {TASKS[2]} --expert_path {{experts}} --tune_method pemt --tasks {FIRST} {BOTH}"
COMMANDS = {
    "tune": tuning(f"{BOTH} --tasks {FIRST}"),
    "tune_two": tuning(f"{BOTH} --tasks {TASKS[0]} {TASKS[1]} --stack 2 --learning_rate_list 1e-2 3e-2"),
    "long": tuning(f"{BOTH} --tasks {FIRST} --train_iters 24 --valid_interval 2 --early_stop 99"),
    "lora": tuning(f"{BOTH} --tasks {FIRST} --tune_method lora"),
    "prefix": tuning(f"{BOTH} --tasks {FIRST} --tune_method prefix"),
    "sources": tuning(f"{BOTH} {ALL} --full_train --stack 3 --seed 1"),
    "random": tuning(f"{BOTH} {ALL} --stack 3 --seed 2"),
    "from_ensemble": tuning(f"{BOTH} --tasks {FIRST} --train_checkpoint {{Loss_weights}}"),
    "test": tuning(f"--do_predict --tasks {FIRST} --test_checkpoint {{sources}}/{FIRST}/checkpoint-best.pt"),
    "pairs": tuning(f"{ALL} --do_predict --source_ckpt_path {{sources}}", "tune_all_ckpt", "tune_all_ckpt:Config"),
    "zero_shot": tuning(f"{ALL} --source_ckpt_path {{sources}}", "dev_all_ckpt", "dev_all_ckpt:Config"),
    "Loss": measure("Loss"),
    "KL": measure("KL_divergence", "--random_tuned_ckpt_path {random}", "TargetConfig"),
    "EL2N": measure("EL2N"),
    "Cosine": measure("Cosine_of_Logits_and_Labels"),
    "GraNd": measure("GraNd", "--mode block"),
    "block": measure("block", "--random_tuned_ckpt_path {random}", "TargetConfig"),
    "average": ensemble("average"),
    "Loss_weights": ensemble("others", "--origin_data_path {Loss} --effective 1.5"),
    "GraNd_weights": ensemble("others", "--origin_data_path {GraNd} --effective 1.5"),
    "cos": ensemble("cos", "--tuned_64shot_ckpt_path {random}"),
    "Euclidean": ensemble("Euclidean", "--tuned_ckpt_path {pairs}"),
    "Performance": ensemble("Performance", "--tuned_ckpt_path {pairs} --zero_result_path {zero_shot}/result.tsv"),
    "statistics": Command(
        f"-m pewe.merging.collect_deltas {DATA} {SIZES} {ALL} --full_train --batch_size 4 --source_ckpt_path out",
        "pewe.merging.collect_deltas:Config",
        "sources",
    ),
    "Fisher": Command(
        f"unit_model/unit_model_Fisher.py {ALL} --quiet --source_ckpt_path {{statistics}} --save_ckpt_path out",
        "unit_model.unit_model_Fisher:Config",
    ),
    "RegMean": Command(
        f"unit_model/unit_model_RegMean.py {ALL} --quiet --source_ckpt_path {{statistics}} --save_ckpt_path out",
        "unit_model.unit_model_RegMean:Config",
    ),
    "convert": Command(
        "-m pewe.deltas.convert --original {original} --out out/new.pt", "pewe.deltas.convert:ConvertConfig"
    ),
    "experts": tuning(f"{BOTH} {ALL} --full_train --tune_method pemt_source --seed 1"),
    "pemt": tuning(PEMT),
    "gates": Command("-m pewe.tuning.gates --runs {pemt} --out out", "pewe.tuning.gates:GatesConfig"),
    "suite": Command(
        "-m pewe.grid --suite {suite.toml} --seeds 1 --init Random Average Loss --name fuzz", "pewe.grid.config:Config"
    ),
    "report": Command("-m pewe.reporting.page --folder out", "pewe.reporting.page:Config", "suite:results/fuzz"),
    "tables": Command(
        "-m pewe.reporting.tables --rows A={tune} B={from_ensemble} --out out", "pewe.reporting.tables:TableConfig"
    ),
    "fusion": Command(
        "-m pewe.fusion.experiment --experiment {fusion.toml} --name fuzz --zoo out/zoo --quiet",
        "pewe.fusion.experiment:Config",
    ),
    "collect": Command(
        "-m pewe.merging.collect --model {local}/a --data {local}/a.tsv --output out/a.safetensors --batch_size 4",
        "pewe.merging.collect:Config",
    ),
    "merge": Command(
        "-m pewe.fusion --models {local}/a {local}/b --stats {local}/a.safetensors {local}/b.safetensors "
        "--output out/merged",
        "pewe.fusion.__main__:Config",
    ),
    "check": Command("-m data.build.check --folders {data}", "data.build.check:CheckConfig"),
    "build": Command(
        "-m data.build --tasks boolq --from_dir {raw} --shots_per_class 2 --out out --quiet",
        "data.build.run:BuildConfig",
    ),
}
OUTPUTS = ("out", "results", "checkpoints")  # all that a command writes lies below these


class World:
    """The folder of the sound inputs and of the clean results."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.outcomes: dict[str, Outcome] = {}
        for name in ("inputs", "clean", "work"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def place(self, name: str) -> Path:
        """An input, made if it is not there; or what a command of this name, or `name:below`, has written."""
        command, _, below = name.partition(":")
        if command in COMMANDS:
            return self.clean(command) / (below or "out")
        path = self.folder / "inputs" / name
        if not path.exists():
            temporary = self.folder / "inputs" / f"new_{name}"
            shutil.rmtree(temporary, ignore_errors=True)
            result = run([], self.folder, 300, prepare=lambda: INPUTS[name](self, temporary))
            if result.code != 0:
                raise RuntimeError(f"{name}: {result.err}")
            temporary.rename(path)
        return path

    def clean(self, name: str) -> Path:
        """The working folder of a clean run of a command."""
        folder = self.folder / "clean" / name
        if not folder.exists():
            temporary = self.folder / "clean" / f"new_{name}"
            shutil.rmtree(temporary, ignore_errors=True)
            words = self.ready(name, temporary, self.place)
            result = run(words, temporary, 300)
            if result.code != 0:
                raise RuntimeError(f"{shlex.join(words)}: {result}")
            (temporary / "stdout.txt").write_text(result.out, encoding="utf-8")
            temporary.rename(folder)
        return folder

    def ready(self, name: str, folder: Path, places: Callable[[str], Path]) -> list[str]:
        """The words of a command whose working folder is `folder`."""
        command = COMMANDS[name]
        folder.mkdir(parents=True, exist_ok=True)
        if command.start and not (folder / "out").exists():
            shutil.copytree(places(command.start), folder / "out")
        return command.words(places)
