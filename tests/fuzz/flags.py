"""Malformed flags: values, ranges, types, repetitions, spellings; malformed lists of tasks; output places."""

import importlib
import re
import typing

from tests.fuzz.case import ANY, EITHER, REFUSE, Box, Case, Variant, different
from tests.fuzz.places import FIRST, TASKS
from tests.fuzz.world import COMMANDS

NO_NUMBER = ("x", "", "nan?", "1;2", "None", "--", "½", "1e", "0x1g", "\u202e1", "1 2")
NO_INTEGER = (*NO_NUMBER, "1.5", "1e3", "nan", "inf", "0x10", "1,000")
# 0, or a negative number, says something of its own
ZERO_SAYS = {
    "seed",
    "seeds",
    "stack",
    "train_epochs",
    "max_batches",
    "show",
    "layers",
    "train_limit",
    "test_limit",
    "rank",
    "warmup_steps",
    "target_adapter_size",
    "limit_train_iters",
    "effective",
    "sparsity",
    "prompt_dropout",
    "alpha",
    "ridge",
    "max_test",
    "max_full",
}
NEGATIVE_SAYS = {"seed", "seeds", "rank", "max_batches"}
INFINITE_SAYS = {"max_grad_norm", "early_stop"}
SIZES = ("adapter_size", "lora_r", "prefix_num", "prefix_r", "expert_rank", "target_adapter_size")
CHOICES = {
    "tune_method",
    "adapter_type",
    "lr_decay_style",
    "optimizer",
    "device",
    "dtype",
    "reduction",
    "mode",
    "orientation",
    "delta",
    "method",
    "normalise",
    "fisher",
    "kind",
    "value",
    "task_list",
    "multitask_groups",
}
# flags of folders and files that are read
PATHS = (
    "model",
    "tokenizer_path",
    "task_dir",
    "source_ckpt_path",
    "random_tuned_ckpt_path",
    "train_checkpoint",
    "test_checkpoint",
    "origin_data_path",
    "tuned_ckpt_path",
    "tuned_64shot_ckpt_path",
    "zero_result_path",
    "expert_path",
    "task_descriptions",
    "original",
    "data",
    "models",
    "stats",
    "runs",
    "folders",
    "from_dir",
    "folder",
    "suite",
    "experiment",
    "data_dir",
)


def kinds(command: str) -> dict[str, tuple[type, bool]]:
    """Flag -> type of its value, or of the items of its list, and whether it is a list."""
    module, _, name = COMMANDS[command].config.partition(":")
    hints = typing.get_type_hints(getattr(importlib.import_module(module), name))
    return {flag: ((typing.get_args(kind) or (kind,))[0], bool(typing.get_args(kind))) for flag, kind in hints.items()}


def given(words: list[str], flag: str) -> list[str]:
    """The values of a flag in a command line."""
    start = len(words) - words[::-1].index(f"--{flag}")
    end = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
    return words[start:end]


def of_kind(wanted: type, values: tuple, right: str, without: set[str] = frozenset(), among: tuple = ()) -> Variant:
    """One flag of this type, of any command, with one of these values."""

    def make(box: Box) -> Case:
        while True:
            command = box.rng.choice(list(COMMANDS))
            flags = [
                flag
                for flag, (kind, _) in kinds(command).items()
                if kind is wanted and flag not in without and (not among or flag in among)
            ]
            if flags:
                break
        flag, value = box.rng.choice(flags), box.rng.choice(values)
        value = value(box) if callable(value) else value
        names = (flag, str(value) or flag, *([f"{float(value):g}"] if right == ANY else []))
        return Case(box.words(command, f"--{flag}", value), right, names, command)

    return make


def a_flag(edit) -> Variant:
    """`edit(flag, rng)` gives the words that are added to some command, and those of which one must be named."""

    def make(box: Box) -> Case:
        command = box.rng.choice(list(COMMANDS))
        flag = box.rng.choice([flag for flag, (kind, many) in kinds(command).items() if kind is not bool])
        words, names = edit(flag, box.rng)
        return Case(box.words(command, *words), REFUSE, names, command)

    return make


def misspelt(flag: str, rng) -> tuple[list[str], tuple[str, ...]]:
    """A flag with two letters changed places, one lost or one doubled."""
    place = rng.randrange(1, len(flag))
    wrong = rng.choice(
        (flag[:place] + flag[place + 1 :] + "q", flag[:place] + flag[place] + flag[place:] + "x", flag.upper())
    )
    return [f"--{wrong}", "1"], (wrong,)


def respelt(box: Box) -> Case:
    """A value of the command line in an unusual spelling, which may be refused but not read as another number."""
    command, flag = box.rng.choice(
        (
            ("tune", "train_iters"),
            ("tune", "bsz_list"),
            ("tune", "learning_rate_list"),
            ("Loss", "predict_batch_size"),
            ("Loss_weights", "effective"),
            ("sources", "stack"),
            ("sources", "seed"),
            ("statistics", "batch_size"),
            ("lora", "lora_alpha"),
        )
    )
    value = given(box.words(command), flag)[0]
    forms = [f" {value}", f"+{value}", f"0{value}", value.replace("1", "\u0661").replace("2", "\u0662"), f"{value} "]
    wrong = box.rng.choice([form for form in forms if form != value])
    return Case(box.words(command, f"--{flag}", wrong), EITHER, (flag, wrong), command)


def twice(box: Box) -> Case:
    """An item of a list that is given twice, as it stands or in another spelling: refused, or counted once."""
    choices = [
        ("tune", "bsz_list", ("4", "04")),
        ("tune", "learning_rate_list", ("1e-2", "0.01", "0.010000000001")),
        ("suite", "seeds", ("1", "01")),
        ("suite", "init", ("Random", "Average", "Loss", "Random")),
        ("average", "tasks", (*TASKS, FIRST)),
        ("Loss", "tasks", (*TASKS, FIRST)),
        ("tune", "tasks", (FIRST, FIRST)),
        ("Loss", "source_tasks", (*TASKS, TASKS[1])),
        ("fusion", "seeds", ("1", "1")),
        ("RegMean", "tasks", (*TASKS, FIRST)),
        ("fusion", "domains", ("market", "harbour", "market")),
        ("cos", "tasks", (*TASKS, FIRST)),
        ("pemt", "experts", (TASKS[1], TASKS[2], TASKS[1])),
        ("statistics", "tasks", (*TASKS, FIRST)),
        ("pairs", "source_tasks", (*TASKS, TASKS[2])),
        ("fusion", "methods", ("simple", "simple")),
        ("Euclidean", "tasks", (*TASKS, FIRST)),
        ("Performance", "tasks", (*TASKS, FIRST)),
        ("suite", "tasks", (*TASKS, FIRST)),
        ("gates", "runs", None),
        ("merge", "models", None),
    ]
    command, flag, values = box.rng.choice(choices)
    if values is None:
        values = tuple(given(box.words(command), flag)) * 2
    return Case(box.words(command, f"--{flag}", *values), EITHER, (flag, *values[-1:]), command)


def big_seed(box: Box) -> Case:
    """A seed of nineteen digits, as a clock gives it."""
    command = box.rng.choice(("tune", "suite", "GraNd", "fusion", "pemt"))
    seed = str(1764157000000000000 + box.rng.randrange(10**17))
    flag = "seeds" if command in ("suite", "fusion") else "seed"
    return Case(box.words(command, f"--{flag}", seed), ANY, (flag,), command)


PLACES = {
    "a file": lambda out: out.write_text("x"),
    "below a file": lambda out: None,
    "a link to nothing": lambda out: out.symlink_to("/proc/nowhere/at/all"),
    "a device": lambda out: out.symlink_to("/dev/full"),
    "log is a folder": lambda out: (out / "log.txt").mkdir(parents=True),
    "result is a folder": lambda out: (out / "result.tsv" / "x").mkdir(parents=True),
    "config is a folder": lambda out: (out / "config.json" / "x").mkdir(parents=True),
    "weights are a folder": lambda out: (out / "final_weight.tsv" / "x").mkdir(parents=True),
    "task is a file": lambda out: (out.mkdir(), (out / FIRST).write_text("x")),
    "best is a folder": lambda out: (out / FIRST / "checkpoint-best.pt" / "x").mkdir(parents=True),
    "ensemble is a folder": lambda out: (out / f"without_{FIRST}_checkpoint.pt" / "x").mkdir(parents=True),
}


WRITERS = (
    "tune",
    "Loss",
    "average",
    "Loss_weights",
    "RegMean",
    "merge",
    "collect",
    "gates",
    "tables",
    "convert",
    "build",
    "fusion",
)


def all_there(box: Box, command: str) -> str:
    """All results of the clean run are there, whatever else is."""
    case = Case([], EITHER, (), command)
    return "; ".join(said for said in different(case, box) if not said.endswith("is new"))


def output(name: str) -> Variant:
    """A command whose output folder cannot be written; a place that it does not need does no harm."""

    def make(box: Box) -> Case:
        command = box.rng.choice(WRITERS)
        PLACES[name](box.root / "out")
        words = box.words(command)
        if name == "below a file":
            (box.root / "file").write_text("x")
            words = [word.replace("out/", "file/out/") if word.startswith("out/") else word for word in words]
            words = ["file/out" if word == "out" else word for word in words]
        return Case(words, EITHER, ("out", "file"), command, check=all_there)

    return make


def nowhere(box: Box) -> Case:
    """An output folder where there can be none."""
    command = box.rng.choice(WRITERS)
    words = [re.sub("^out(/|$)", "/proc/none/", word) for word in box.words(command)]
    return Case(words, REFUSE, ("/proc/none",), command)


def odd_name(box: Box) -> Case:
    """An output folder with an odd name is a folder like any other, or too long."""
    command, flag = box.rng.choice((("tune", "output_dir"), ("Loss", "output_dir"), ("average", "save_ckpt_path")))
    name = box.rng.choice(
        ("a\nb", "ünï \u202e空", "$(touch executed);'\"`x`", "-x", "a b", "%s%n", "x" * 300, "", "~", "out.tsv")
    )
    words = box.words(
        command, f"--{flag}={name}" if name.startswith("-") else f"--{flag}", *([] if name.startswith("-") else [name])
    )
    return Case(words, ANY, (flag, name[:80] or flag, "File name too long"), command, writes=frozenset({name}))


def outside(box: Box) -> Case:
    """A name that would lead out of checkpoints/ and results/."""
    command, name = (
        box.rng.choice(("suite", "fusion")),
        box.rng.choice(("../../evil", "/tmp/../{}/evil", "..", "a/../../../evil", ".")),
    )
    name = name.replace("{}", str(box.folder)[1:])
    return Case(box.words(command, "--name", name), REFUSE, ("name", name), command)


def tasks(values: tuple[str, ...], flag: str = "tasks") -> Variant:
    """A list of tasks with something else in it."""

    def make(box: Box) -> Case:
        command = box.rng.choice([name for name in COMMANDS if flag in kinds(name) and name not in ("build", "check")])
        value = box.rng.choice(values)
        more = [value] if flag == "task_list" else box.rng.sample([*TASKS, value], 4)
        words = box.words(command, f"--{flag}", *more)
        if flag == "task_list":
            start = words.index("--tasks") if "--tasks" in words else None
            words = words if start is None else words[:start] + words[start + 1 + len(given(words, "tasks")) :]
        return Case(words, REFUSE, (f"--{flag}", value[:60] or "''"), command)

    return make


def own_list(
    change, command_names: tuple[str, ...], *more: str, names: tuple[str, ...] = (FIRST,), right=REFUSE
) -> Variant:
    """A mistake in task_list.py itself: `change(task_list)` is made in the process of the command."""

    def make(box: Box) -> Case:
        command = box.rng.choice(command_names)
        words = box.words(command)
        if more:
            words = words[: words.index("--tasks")] + words[words.index("--tasks") + 1 + len(given(words, "tasks")) :]

        def prepare() -> None:
            change(importlib.import_module("task_list"))

        return Case([*words, *more], right, (*names, "mine", "'a'", "/a/"), command, prepare=prepare)

    return make


def mine(tasks, names: tuple[str, ...] = (FIRST,), right: str = REFUSE) -> Variant:
    """A list of task_list.py that is wrong."""
    return own_list(
        lambda lists: lists.TASK_LISTS.update(mine=tasks), LISTED, "--task_list", "mine", names=names, right=right
    )


def a_switch(box: Box) -> Case:
    """A switch takes no value."""
    command = box.rng.choice([name for name in COMMANDS if any(kind is bool for kind, _ in kinds(name).values())])
    flag = box.rng.choice([flag for flag, (kind, _) in kinds(command).items() if kind is bool])
    return Case(box.words(command, f"--{flag}={box.rng.choice(('yes', 'true', '0', ''))}"), REFUSE, (flag,), command)


def cut_short(flag: str, rng) -> tuple[list[str], tuple[str, ...]]:
    """The beginning of a flag."""
    return [f"--{flag[: rng.randrange(2, len(flag))]}", "1"], ("unknown", "unexpected", "invalid")


def stray(flag: str, rng) -> tuple[list[str], tuple[str, ...]]:
    """A word that belongs to no flag."""
    word = rng.choice(("stray", "1", "é", "a=b"))
    return ["--as_original", word], (word, "as_original")


WEIGHTED = ("average", "cos", "Euclidean", "Performance", "RegMean", "Fisher")
LISTED = ("tune", "Loss", "statistics", *WEIGHTED)
LARGE = (
    "stack",
    "max_input_length",
    "predict_batch_size",
    "seed",
    "log_interval",
    "early_stop",
    "micro_batch_size",
    "examples",
)
NO_CHOICE = ("adaptor", "", "ADAPTER", "adapter ", "аdapter", "None", "0", "lora,adapter")
NO_PATH = ("no/such/place", "/nowhere", "", "out\x07", "a" * 5000, "x:/y")
NO_TASK = ("mini_read_town", "x", "", " ", "mini_read_towns ", "MINI_READ_TOWNS", "mini_reading", "空", "nan", "null")
FLAGS: dict[str, Variant] = {  # of any command
    "int is no number": of_kind(int, NO_INTEGER, REFUSE),
    "int is negative": of_kind(int, ("-1", "-2", "-1000000"), EITHER, NEGATIVE_SAYS),
    "int is 0": of_kind(int, ("0", "-0", "00"), EITHER, ZERO_SAYS),
    "size is huge": of_kind(int, ("10000000000000", "99999999999999999999999"), ANY, among=SIZES),
    "number is huge": of_kind(int, ("99999999999999999999", str(2**63)), ANY, among=LARGE),
    "seed is negative": of_kind(int, ("-1", "-9223372036854775809"), ANY, among=("seed", "seeds")),
    "float is no number": of_kind(float, (*NO_NUMBER, "1,5"), REFUSE),
    "float is nan": of_kind(float, ("nan", "-nan", "NaN"), EITHER),
    "float is infinite": of_kind(float, ("inf", "-inf", "1e999"), EITHER, INFINITE_SAYS),
    "float is negative": of_kind(float, ("-1", "-1e-9", "-1e30"), EITHER),
    "float is 0": of_kind(float, ("0", "-0.0", "1e-400"), EITHER, ZERO_SAYS),
    "float is huge": of_kind(float, ("1e300", "1e39"), ANY),
    "choice is unknown": of_kind(str, NO_CHOICE, EITHER, among=tuple(CHOICES)),
    "path is nowhere": of_kind(str, NO_PATH, EITHER, among=PATHS),
    "path is a file": of_kind(str, (lambda box: box.place("descriptions.tsv"),), EITHER, among=PATHS),
    "path is a folder": of_kind(str, (lambda box: box.place("data"),), EITHER, among=PATHS),
    "yes to a switch": a_switch,
    "flag is misspelt": a_flag(misspelt),
    "flag is cut short": a_flag(cut_short),
    "flag without a value": a_flag(lambda flag, rng: ([f"--{flag}"], (flag,))),
    "a stray word": a_flag(stray),
    "value in another spelling": respelt,
    "item twice": twice,
    "seed of a clock": big_seed,
}
GROUPS: dict[str, dict[str, Variant]] = {
    "flags": {f"{name} ({turn})": make for name, make in FLAGS.items() for turn in (1, 2, 3)},
    "tasks": {
        "unknown": tasks(NO_TASK),
        "a path": tasks(("../data", "../../etc", "/etc", "./mini_read_towns", "mini_read_towns/", "$(touch executed)")),
        "list is unknown": tasks(("mini", "mini_read_towns", "QA_task_lists", "../x"), "task_list"),
        "metric is unknown": own_list(
            lambda lists: lists.METRICS.update({FIRST: "F2"}), ("tune", "random", "pairs"), names=("F2", FIRST)
        ),
        "metric is missing": own_list(
            lambda lists: lists.METRICS.update({FIRST: None}), ("tune", "random"), names=("metric", FIRST)
        ),
        "list names a task twice": mine([*TASKS, FIRST], right=EITHER),
        "list names an unknown task": mine([*TASKS, "zzz"], ("zzz",)),
        "list is empty": mine([]),
        "list is a text": mine("abc"),
        "one task only": lambda box: Case(
            box.words(command := box.rng.choice(WEIGHTED), "--tasks", FIRST), REFUSE, (FIRST, "tasks"), command
        ),
    },
    "places": {
        **{name: output(name) for name in PLACES},
        "no such file system": nowhere,
        **{f"odd name ({turn})": odd_name for turn in range(5)},
        "name leads outside": outside,
    },
}
