"""Malformed files of flags: suites and fusion experiments."""

from collections.abc import Callable

from tests.fuzz.case import ANY, EITHER, REFUSE, SAME, Box, Case, Variant
from tests.fuzz.places import DOMAINS, FIRST, TASKS, Raw, fusion_flags, suite_sections, toml

Sections = dict


def suite(
    change: Callable[[Sections], object], names: tuple[str, ...], right: str = REFUSE, *more: str, check=None
) -> Variant:
    """A suite whose content is changed."""

    def make(box: Box) -> Case:
        found = suite_sections(box.world)
        text = change(found)
        path = box.input("suite.toml")
        path.write_bytes(text if isinstance(text, bytes) else (text if isinstance(text, str) else toml(found)).encode())
        return Case(
            box.words("suite", "--suite", path, *more), right, names, "suite", check=check, causes=right != REFUSE
        )

    return make


def flag(section: str, name: str, values: tuple, right: str = REFUSE) -> Variant:
    """One flag of a suite with one of these values; the file, the section or the flag is to be named."""

    def make(box: Box) -> Case:
        value = box.rng.choice(values)
        return suite(
            lambda found: found.setdefault(section, {}).update({name: value}), (name, f"[{section}]", "zzz"), right
        )(box)

    return make


def of_suite(*words: str, names: tuple[str, ...], right: str = REFUSE) -> Variant:
    """Flags of pewe.grid.run."""
    return lambda box: Case(box.words("suite", *words), right, names, "suite", causes=right != REFUSE)


def experiment(change: Callable[[dict], object], names: tuple[str, ...], right: str = REFUSE) -> Variant:
    """A file of a fusion experiment whose content is changed."""

    def make(box: Box) -> Case:
        found = fusion_flags(box.world)
        text = change(found)
        path = box.input("fusion.toml")
        path.write_bytes(text if isinstance(text, bytes) else (text if isinstance(text, str) else toml(found)).encode())
        return Case(box.words("fusion", "--experiment", path), right, names, "fusion")

    return make


def setting(name: str, values: tuple, right: str = REFUSE, names: tuple[str, ...] = ()) -> Variant:
    """One flag of an experiment with one of these values."""

    def make(box: Box) -> Case:
        value = box.rng.choice(values)
        return experiment(lambda found: found.update({name: value}), (name, *names), right)(box)

    return make


def instead(section: str, **entries) -> Callable[[Sections], None]:
    """Other entries in the place of a section."""

    def change(found: Sections) -> None:
        found.pop(section)
        found.update(entries)

    return change


def entry(**entries) -> Callable[[dict], None]:
    """Further entries at the top of a file."""
    return lambda found: found.update(entries)


NO_INT = ("2", 2.5, True, [2], Raw("2020-01-01"), Raw("{a = 1}"), Raw("nan"), "")
NO_LIST = (4, "4", Raw("{}"), ["4"], [[4]], [True], [4.5])
NO_FLOAT = ("0.01", True, [0.01], Raw("12:00:00"))
NO_TEXT = (5, True, ["x"], Raw("{}"), 1.5)
NAN, INF = Raw("nan"), Raw("inf")
NOWHERE = ("/nowhere/at/all", "")
# section and flag of a suite -> values of another type, values out of its range, values that are unknown
OTHER_TYPES = {
    ("tuning", "train_iters"): NO_INT,
    ("tuning", "stack"): NO_INT,
    ("tuning", "bsz_list"): NO_LIST,
    ("tuning", "learning_rate_list"): ("1e-2", 0.01, ["x"], [True], Raw("[[0.01]]")),
    ("tuning", "max_grad_norm"): NO_FLOAT,
    ("tuning", "start_is_candidate"): ("yes", 1, 0, []),
    ("weights", "effective"): NO_FLOAT,
    ("all", "model"): NO_TEXT,
    ("all", "task_dir"): NO_TEXT,
    ("all", "device"): NO_TEXT,
    ("all", "tasks"): (FIRST, 5, [5], [[FIRST]]),
    ("delta.adapter", "adapter_size"): NO_INT,
}
OUT_OF_RANGE = {
    ("tuning", "train_iters"): (0, -2),
    ("tuning", "stack"): (0, -1),
    ("tuning", "valid_interval"): (0, -1),
    ("tuning", "bsz_list"): ([0], [-4], []),
    ("tuning", "learning_rate_list"): ([], [-1.0], [0.0], Raw("[nan]"), Raw("[inf]")),
    ("tuning", "max_grad_norm"): (-1.0, NAN, 0.0),
    ("weights", "effective"): (-3.0, NAN, INF, Raw("-inf")),
    ("all", "max_input_length"): (0, -3),
    ("delta.adapter", "adapter_size"): (0, -3),
}
UNKNOWN = {
    ("all", "tasks"): ([*TASKS, "zzz"],),
    ("all", "device"): ("gpu", "", "cuda:99"),
    ("all", "model"): NOWHERE,
    ("all", "task_dir"): NOWHERE,
    ("all", "adapter_sise"): (2,),
    ("tuning", "lr_decay_style"): ("linea", ""),
    ("tuning", "optimizer"): ("adam", ""),
    ("tuning", "trian_iters"): (2,),
}
HARMLESS = {  # or refused
    ("tuning", "learning_rate_list"): ([0.01, 0.01], [0.01, 0.0100000000001]),
    ("tuning", "bsz_list"): ([4, 4],),
    ("all", "tasks"): ([*TASKS, FIRST],),
    ("all", "task_list"): ("nope",),
    ("tuning", "output_dir"): ("/tmp/evil",),
    ("tuning", "seed"): (9,),
}
SUITES: dict[str, Variant] = {
    **{f"{name}: another type": flag(section, name, values) for (section, name), values in OTHER_TYPES.items()},
    **{f"{name}: out of its range": flag(section, name, values) for (section, name), values in OUT_OF_RANGE.items()},
    **{f"{name}: unknown": flag(section, name, values) for (section, name), values in UNKNOWN.items()},
    **{f"{name}: odd": flag(section, name, values, EITHER) for (section, name), values in HARMLESS.items()},
    "flag of another section": flag("weights", "train_iters", (2,), ANY),
    "misspelt section": suite(entry(tunning={"stack": 1}), ("tunning",)),
    "unknown key": suite(entry(stack=3), ("stack",)),
    "unknown key of text": suite(entry(taks="x"), ("taks",)),
    "section is a number": suite(entry(sources=5), ("sources",)),
    "all is a number": suite(instead("all", all=5), ("all",)),
    "section is a list": suite(instead("tuning", tuning=[1]), ("tuning",)),
    "title is a number": suite(entry(title=5), ("title",)),
    "title of markup": suite(entry(title="<script>alert(1)</script>"), ("title",), SAME),
    "no delta": suite(instead("delta.adapter"), ("delta",)),
    "unknown delta": suite(entry(**{"delta.adaptor": {}}), ("adaptor",)),
    "delta is a text": suite(instead("delta.adapter", delta="adapter"), ("delta",)),
    "delta is a list": suite(instead("delta.adapter", delta=["adapter"]), ("delta",)),
    "delta is a number": suite(instead("delta.adapter", delta=Raw("{adapter = 5}")), ("adapter",)),
    "own section is a list": suite(lambda found: found["delta.adapter"].update(sources=[1]), ("sources",)),
    "own section is unknown": suite(entry(**{"delta.adapter.sorces": {"train_iters": 2}}), ("sorces",)),
    "base is itself": suite(entry(base="suite.toml"), ("base", "suite.toml")),
    "base is nowhere": suite(entry(base="nope.toml"), ("nope.toml",)),
    "base is a number": suite(entry(base=5), ("base",)),
    "base is a folder": suite(entry(base="."), ("base", "suite")),
    "base is below a file": suite(entry(base="/dev/null/x"), ("base", "/dev/null")),
    "empty": suite(lambda found: "", ("delta", "suite.toml")),
    "random bytes": suite(lambda found: b"\xff\xfe\x00" * 50, ("suite.toml",)),
    "byte order mark": suite(lambda found: b"\xef\xbb\xbf" + toml(found).encode(), (), SAME),
    "line ends of Windows": suite(lambda found: toml(found).replace("\n", "\r\n"), (), SAME),
    "UTF-16": suite(lambda found: toml(found).encode("utf-16"), ("suite.toml",)),
    "key twice": suite(lambda found: toml(found).replace("stack = 3", "stack = 3\nstack = 3"), ("suite.toml",)),
    "cut off": suite(lambda found: toml(found)[:-9], ("suite.toml",)),
    "is a folder": lambda box: Case(
        box.words("suite", "--suite", box.place("data")), REFUSE, ("data", "--suite"), "suite"
    ),
    "is missing": of_suite("--suite", "/nowhere.toml", names=("/nowhere.toml",)),
    "name is empty": of_suite("--suite", "", names=("suite",)),
    "name leads outside": of_suite("--suite", "../../x", names=("../../x",)),
    "unknown init": of_suite("--init", "Random", "Avrage", names=("Avrage",)),
    "init of another delta": of_suite("--init", "PEMT", names=("PEMT", "init"), right=ANY),
    "no baseline": of_suite("--init", "Average", names=("init",), right=ANY),
    "seed is negative": of_suite("--seeds", "-1", names=("seeds",), right=ANY),
    "unknown delta of the command": of_suite("--delta", "lora", names=("lora",)),
    "delta twice": of_suite("--delta", "adapter", "adapter", names=("delta", "adapter"), right=EITHER),
    "one task": of_suite("--tasks", FIRST, names=("tasks", FIRST), right=ANY),
    "two tasks": of_suite("--tasks", *TASKS[:2], names=(*TASKS, "effective"), right=ANY),
    "limit is negative": of_suite("--limit_train_iters", "-1", names=("limit_train_iters",)),
    "all sources fail": suite(
        lambda found: found["all"].update(max_output_length=1), (*TASKS, "max_output_length"), ANY
    ),
}
OTHER_TYPES_OF_FUSION = {
    "updates": NO_INT,
    "seeds": (1, "1", ["a"], [1.5], [True]),
    "domains": ("market", [1, 2], 5),
    "alpha": NO_FLOAT,
    "model": NO_TEXT,
    "head_rule": ("yes", 1, []),
}
OUT_OF_RANGE_OF_FUSION = {
    "updates": (0, -5),
    "batch_size": (0, -8),
    "examples": (0, -1),
    "max_length": (0, 1, -4),
    "layers": (-1, 99),
    "train_limit": (-3,),
    "test_limit": (-3, -1),
    "seeds": ([],),
    "domains": ([], ["market"], ["market", "market"]),
    "methods": ([],),
    "heads": ([],),
    "protocols": ([],),
    "held_out": (["market"],),
    "alpha": (-1.0, 2.0, NAN, INF),
    "ridge": (-1.0, NAN, INF),
    "learning_rate": (-1.0, NAN, INF),
    "smoothing": (0.0, -1.0, NAN),
    "filter_model": (["market"],),
}
UNKNOWN_TO_FUSION = {
    "updats": (5,),
    "x": (Raw("{a = 1}"),),
    "domains": (["market", "nope"], ["market#2", "nope"]),
    "methods": (["simpel"],),
    "kind": ("sngle", "", "tokens", "yesno"),
    "fisher": ("soft", ""),
    "protocols": (["pairs"],),
    "heads": (["other"],),
    "model": NOWHERE,
    "data_dir": NOWHERE[:1],
    "rename": (["a"], ["a=b=c"], ["joy=a", "joy=b"]),
    "multitask_groups": ("x", ""),
    "filter_model": (["nope"],),
    "exclude": (["("],),
}
METHODS = ["individual", "simple", "fisher", "regmean", "soft_ensemble"]
TWICE = {"seeds": ([1, 1],), "held_out": (["garden", "garden"],), "methods": ([*METHODS, "simple"],)}
ODD_FOR_FUSION = {
    "seeds": ([-1],),
    "learning_rate": (1e30,),
    "domains": (["market#0", "market#1"],),
    "kind": ("multi",),
}
OUTSIDE = (["market", "../emotions/harbour"], ["market", "./harbour"])
EXPERIMENTS: dict[str, Variant] = {
    **{f"{name}: another type": setting(name, values) for name, values in OTHER_TYPES_OF_FUSION.items()},
    **{f"{name}: out of its range": setting(name, values) for name, values in OUT_OF_RANGE_OF_FUSION.items()},
    **{
        f"{name}: unknown": setting(name, values, REFUSE, ("nope", "nowhere", "#2", ".txt"))
        for name, values in UNKNOWN_TO_FUSION.items()
    },
    **{f"{name}: twice": setting(name, values, EITHER) for name, values in TWICE.items()},
    **{f"{name}: odd": setting(name, values, ANY) for name, values in ODD_FOR_FUSION.items()},
    "domains: outside": setting("domains", OUTSIDE, REFUSE, ("harbour",)),
    "domains: sound": setting("domains", (list(DOMAINS[:2]),), SAME),
    "model: a T5": lambda box: setting("model", (str(box.place("t5")),), REFUSE, ("t5",))(box),
    "empty": experiment(lambda found: "", ("domains",)),
    "random bytes": experiment(lambda found: b"\xff\x00" * 50, ("fusion.toml",)),
    "byte order mark": experiment(lambda found: b"\xef\xbb\xbf" + toml(found).encode(), (), SAME),
    "cut off": experiment(lambda found: toml(found)[:-9], ("fusion.toml",)),
    "is a folder": lambda box: Case(
        box.words("fusion", "--experiment", box.place("data")), REFUSE, ("data",), "fusion"
    ),
    "is missing": lambda box: Case(box.words("fusion", "--experiment", "/nowhere"), REFUSE, ("/nowhere",), "fusion"),
}
GROUPS = {"suites": SUITES, "experiments": EXPERIMENTS}
