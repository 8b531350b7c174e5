"""What a flag may be, for every flag of every command, on the command line and in a file."""

import dataclasses
import importlib.util
import operator
import re
import sys
import typing

import pytest
from conftest import ROOT

from pewe.cli import parse
from pewe.errors import UserError
from pewe.flags import LARGEST, SEED, check, check_file, checked_name, complaint
from pewe.fusion.cells import Config as FusionConfig
from pewe.grid.config import Config as GridConfig
from pewe.merging.save import SoftmaxConfig
from pewe.similarity.config import SimilarityConfig
from pewe.tuning.config import TuneConfig

COMMANDS = sorted(
    path
    for pattern in ("*.py", "*/*.py", "*/*/*.py")
    for path in ROOT.glob(pattern)
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    and path.parts[len(ROOT.parts)] not in ("tests", ".venv")
    and path not in (ROOT / "pewe" / "__main__.py", ROOT / "setup.py")  # the first calls the others
)


def config_of(path):
    """The class of flags that the command in this file gives to `cli.main`."""
    text = path.read_text(encoding="utf-8")
    name = re.search(r"""if __name__ == "__main__":\n    main\(.*?, ([\w.]+), __doc__""", text).group(1)
    if path.parent.name.startswith("mini_"):  # a script beside its data, not in a package
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(f"script_{path.parent.name}_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        sys.path.remove(str(path.parent))
    else:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return operator.attrgetter(name)(module)


def test_there_are_commands():
    assert len(COMMANDS) > 35 and ROOT / "data" / "build" / "check.py" in COMMANDS


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_flag_of_every_command_has_a_range(path):
    """Every command goes through `cli.main`; its defaults are allowed; no flag takes what no flag can mean."""
    config_class = config_of(path)
    assert config_class.__dataclass_params__.frozen
    config = config_class()
    check(config)
    assert parse(config_class, []) == config
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        (kind,), as_list = typing.get_args(kinds[field.name]) or (kinds[field.name],), "list" in str(kinds[field.name])
        default = getattr(config, field.name)
        impossible = {
            float: (float("nan"), float("inf"), -float("inf"), "0.1", True, None),
            int: (SEED if "seed" in field.name else LARGEST + 1, -(10**12), 0.5, "1", True),
            str: ("a\0b", "a\udc80", 5),
            bool: (1, "true"),
        }[kind]
        for wrong in ([one] for one in impossible) if as_list else impossible:
            assert complaint(config_class, field.name, wrong), (field.name, wrong)
        if default not in ("", []) and kind is not bool:
            assert not as_list or complaint(config_class, field.name, []) == "must not be empty"
            assert kind is not str or complaint(config_class, field.name, [""] if as_list else "")


TUNE, SIM, FUSE, ENS, GRID = TuneConfig, SimilarityConfig, FusionConfig, SoftmaxConfig, GridConfig
REFUSED = [
    (TUNE, "--learning_rate_list nan", "--learning_rate_list must be a finite number, not nan"),
    (TUNE, "--learning_rate_list 1e-3 inf", "--learning_rate_list must be a finite number, not inf"),
    (TUNE, "--learning_rate_list 0", "--learning_rate_list must be above 0, not 0.0"),
    (TUNE, "--learning_rate_list 5e-4 0.0005", "--learning_rate_list names '0.0005' twice"),
    (TUNE, "--learning_rate_list 0.0100000001 0.0100000002", "--learning_rate_list names '0.01' twice"),
    (TUNE, "--bsz_list 0", "--bsz_list must be at least 1, not 0"),
    (TUNE, "--bsz_list 8 8", "--bsz_list names 8 twice"),
    (TUNE, "--tasks boolq boolq", "--tasks names 'boolq' twice"),
    (TUNE, "--max_grad_norm nan", "--max_grad_norm must be a finite number"),
    (TUNE, "--max_grad_norm 0", "--max_grad_norm must be above 0"),
    (TUNE, "--max_grad_norm -1", "--max_grad_norm must be above 0"),
    (TUNE, "--lora_alpha nan", "--lora_alpha must be a finite number"),
    (TUNE, "--lora_alpha 0", "--lora_alpha must be above 0"),
    (TUNE, "--adapter_size 0", "--adapter_size must be at least 1"),
    (TUNE, "--adapter_size 1000000000000", "--adapter_size must be at most 65536"),
    (TUNE, "--lora_r -1", "--lora_r must be at least 1"),
    (TUNE, "--prefix_num 100000000", "--prefix_num must be at most 65536"),
    (TUNE, "--stack 100000000", "--stack must be at most 4096"),
    (TUNE, "--stack -1", "--stack must be at least 0"),
    (TUNE, "--train_epochs -1", "--train_epochs must be at least 0"),
    (TUNE, "--warmup_steps -5", "--warmup_steps must be at least 0"),
    (TUNE, "--train_iters 99999999999999999999", "--train_iters must be at most 2147483647"),
    (TUNE, "--max_input_length 99999999999999999999", "--max_input_length must be at most 32768"),
    (TUNE, "--max_output_length 1", "--max_output_length must be at least 2"),
    (TUNE, "--seed -1", "--seed must be at least 0"),
    (TUNE, "--seed 9223372036854775808", "--seed must be at most 9223372036854775807"),
    (TUNE, "--prompt_dropout 1.5", "--prompt_dropout must be at most 1"),
    (TUNE, "--output_dir=", "--output_dir must not be empty"),
    (TUNE, "--model=", "--model must not be empty"),
    (TUNE, "--tune_method=", "--tune_method cannot be ''"),
    (TUNE, "--tune_method adaptor", "--tune_method cannot be 'adaptor'; did you mean 'adapter'"),
    (TUNE, "--device gpu", "--device cannot be 'gpu'"),
    (TUNE, "--dtype float16", "--dtype cannot be 'float16'"),
    (TUNE, "--experts ../../x", "--experts must be a plain name without slashes, not '../../x'"),
    (SIM, "--max_batches -2", "--max_batches must be at least -1"),
    (SIM, "--stack -1", "--stack must be at least 0"),
    (SIM, "--reduction=", "--reduction cannot be ''"),
    (SIM, "--source_tasks boolq boolq", "--source_tasks names 'boolq' twice"),
    (ENS, "--effective -1", "--effective must be at least 0"),
    (ENS, "--effective nan", "--effective must be a finite number"),
    (ENS, "--delta lorra", "--delta cannot be 'lorra'; did you mean 'lora'"),
    (GRID, "--name ../../x", "--name must be a plain name without slashes, not '../../x'"),
    (GRID, "--name /tmp/x", "--name must be a plain name"),
    (GRID, "--init Random Random", "--init names 'Random' twice"),
    (GRID, "--init Rnd", "--init cannot be 'Rnd'; did you mean 'Random'"),
    (GRID, "--delta lorra", "--delta cannot be 'lorra'; did you mean 'lora'"),
    (GRID, "--seeds 1 1", "--seeds names 1 twice"),
    (GRID, "--limit_train_iters -1", "--limit_train_iters must be at least 0"),
    (FUSE, "--batch_size 0", "--batch_size must be at least 1"),
    (FUSE, "--layers -1", "--layers must be at least 0"),
    (FUSE, "--train_limit -3", "--train_limit must be at least 0"),
    (FUSE, "--alpha 2", "--alpha must be at most 1"),
    (FUSE, "--alpha nan", "--alpha must be a finite number"),
    (FUSE, "--seeds 1 1", "--seeds names 1 twice"),
    (FUSE, "--name ../../x", "--name must be a plain name without slashes, not '../../x'"),
    (FUSE, "--domains market ../harbour", "--domains must be a plain name without slashes, not '../harbour'"),
    (FUSE, "--domains market market", "--domains names 'market' twice"),
    (FUSE, "--methods simple simple", "--methods names 'simple' twice"),
]


@pytest.mark.parametrize(("config_class", "args", "message"), REFUSED, ids=[args for _, args, _ in REFUSED])
def test_a_flag_that_is_refused(config_class, args, message):
    with pytest.raises(UserError) as error:
        parse(config_class, args.split())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "args", ["--stack 0", "--max_batches -1", "--seed 9223372036854775807", "--source_tasks boolq"]
)
def test_a_flag_that_is_allowed(args):
    parse(SimilarityConfig, args.split())


def test_a_flag_may_have_a_second_name():
    assert parse(TuneConfig, ["--delta", "lora"]) == parse(TuneConfig, ["--tune_method", "lora"])
    with pytest.raises(UserError, match="--tune_method cannot be 'lorra'; did you mean 'lora'"):
        parse(TuneConfig, ["--delta", "lorra"])


def test_a_file_of_flags_is_named_with_what_is_wrong_in_it(tmp_path):
    file = tmp_path / "mine.toml"
    for text, message in (
        ("batch_size = 0", "batch_size must be at least 1, not 0"),
        ("learning_rate = nan", "learning_rate must be a finite number"),
        ("seeds = [1, 1]", "seeds names 1 twice"),
        ("seeds = []", "seeds must not be empty"),
        ('domains = ["../x"]', "domains must be a plain name"),
        ("[x]\na = 1", "unknown flag 'x'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=rf"^{file}: {message}"):
            parse(FusionConfig, ["--experiment", str(file)], file_flag="experiment")
    file.write_bytes(b"\xef\xbb\xbfbatch_size = 7")
    assert parse(FusionConfig, ["--experiment", str(file)], file_flag="experiment").batch_size == 7


def test_another_default_of_a_subclass_keeps_the_rules():
    assert complaint(SimilarityConfig, "predict_batch_size", 0) == "must be at least 1, not 0"
    assert complaint(SimilarityConfig, "stack", 0) == "" and complaint(TuneConfig, "learning_rate_list", [0.0])
    assert complaint(SimilarityConfig, "stack", 2**13)  # the upper end is the base's


def test_values_of_a_file_are_checked_for_every_command_that_reads_them():
    for values, message in (
        ({"stack": "12"}, r"x\.toml, \[all\]: stack must be int, not '12'"),
        ({"stak": 1}, r"x\.toml, \[all\]: unknown flag 'stak'; did you mean 'stack'"),
        ({"effective": 10**400}, "effective must be at most"),
        ({"tasks": []}, None),
        ({"bsz_list": []}, "bsz_list must not be empty"),
        ({"bsz_list": [4.0]}, "bsz_list must be a list of int"),
        ({"model": 5}, "model must be str, not 5"),
        ({"as_original": 1}, "as_original must be bool, not 1"),
    ):
        if message is None:
            check_file(values, [TuneConfig, SoftmaxConfig], "x.toml, [all]")
            continue
        with pytest.raises(UserError, match=message):
            check_file(values, [TuneConfig, SoftmaxConfig], "x.toml, [all]")


ELSEWHERE = [
    "../../x",
    "/etc/x",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a\nb",
    "a\0b",
    "a\u2028b",
    "\udc80",
    float("nan"),
    None,
]


@pytest.mark.parametrize("name", ELSEWHERE, ids=repr)
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(UserError, match=r"table, line 3: scope must"):
        checked_name(name, "table, line 3: scope")


@pytest.mark.parametrize("name", ["encoder.block.3", "task one", "ñandú 空", "a..b", ".x", "glue-qqp#0", "$(x);'\"<b>"])
def test_names_with_blanks_and_any_letters_stay_allowed(name):
    assert checked_name(name, "scope") == name
