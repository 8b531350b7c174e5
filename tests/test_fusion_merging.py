"""What a merge of whole models may not do: cut, overflow, pass on what is not finite, or take what does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pewe.errors import UserError
from pewe.files import read_record
from pewe.fusion import __main__ as fusion_main
from pewe.identity import file_digest, model_digest
from pewe.merging.models import OTHERS, MergeConfig, merge_models
from pewe.merging.rules import RULES
from pewe.merging.statistics import FISHER, GRAM, Statistics
from pewe.merging.store import model_tensors, write_tensors

half, brain, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64


def merged(*models, statistics=(), **settings) -> dict[str, torch.Tensor]:
    return dict(merge_models(models, MergeConfig(**{"method": "simple", **settings}), statistics))


def of(value, dtype=single, shape=(2, 2)) -> dict[str, torch.Tensor]:
    return {"w.weight": torch.full(shape, value).to(dtype)}


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((half, single), single),
        ((single, half), single),
        ((half, brain), single),
        ((brain, brain), brain),
        ((half, half), half),
        ((half, double), double),
        ((double, single), double),
    ],
)
def test_floats_are_written_in_the_widest_dtype(dtypes, expected):
    found = merged(of(1.0, dtypes[0]), of(3.0, dtypes[1]))["w.weight"]
    assert found.dtype == expected and (found == 2).all()


def test_a_first_model_in_half_precision_holds_what_the_others_have():
    found = merged(of(1.0, half), of(2e5))["w.weight"]
    assert found.dtype == single and (found == 100000.5).all()
    fine = merged({"w": torch.tensor([1 + 2**-20])}, {"w": torch.tensor([1.0])})["w"]
    assert fine.item() == 1 + 2**-21
    tiny = merged(*[{"w": torch.tensor([value], dtype=half)} for value in (65504, 65504, 65504)])["w"]
    assert tiny.item() == 65504  # the sum overflows in half precision, the mean does not


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_stay_as_they_are_or_are_refused(dtype):
    ids = {"ids": torch.tensor([0, 1, 1]).to(dtype), **of(1.0)}
    found = merged(ids, {"ids": ids["ids"].clone(), **of(2.0)}, ids)
    assert found["ids"].dtype == dtype and torch.equal(found["ids"], ids["ids"])
    with pytest.raises(UserError, match=r"model 2: ids \(torch\..*\) is not equal to that of model 0; --exclude it"):
        merged(ids, ids, {"ids": torch.tensor([0, 1, 0]).to(dtype), **of(2.0)})
    only = merged(ids, {"ids": torch.tensor([0, 1, 0]).to(dtype), **of(2.0)}, exclude=["ids"])
    assert only.keys() == {"w.weight"}


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_integers_need_no_statistics(method):
    models = [{"ids": torch.tensor([3]), **of(value)} for value in (1.0, 3.0)]
    own = {GRAM + "w": torch.eye(2).double(), FISHER + "w.weight": torch.ones(2, 2)}
    statistics = [Statistics(own, {"labels": [], "conv1d": []})] * 2
    found = merged(*models, statistics=statistics, method=method)
    assert found["ids"].tolist() == [3] and torch.allclose(found["w.weight"], torch.full((2, 2), 2.0))


def test_a_weight_left_to_the_simple_average_must_be_there():
    own = {GRAM + "w": torch.diag(torch.tensor([1.0, 3.0])).double()}
    models, statistics = (of(1.0), of(3.0)), [Statistics(own, {"labels": [], "conv1d": []})] * 2
    assert merged(*models, statistics=statistics, method="regmean", regmean_exclude=["w"]).keys() == {"w.weight"}
    with pytest.raises(UserError, match=r"--regmean_exclude 'v\.weight' matches no tensor of model 0"):
        merged(*models, statistics=statistics, method="regmean", regmean_exclude=["v.weight"])


NAN, INF = float("nan"), float("inf")
REFUSED = {
    "nan": ([of(1.0), of(NAN)], r"model 1: tensor w\.weight has values that are not finite"),
    "nan of the first": ([of(NAN), of(1.0)], r"model 0: tensor w\.weight has values that are not finite"),
    "inf": ([of(1.0), of(1.0), of(-INF, half)], r"model 2: tensor w\.weight has values that are not finite"),
    "missing": ([of(1.0), {}], r"model 1 has no tensor w\.weight, which model 0 has"),
    "extra": ([of(1.0), {**of(1.0), "b": torch.ones(1)}], "model 1 has a tensor b, which model 0 has not"),
    "shape": ([of(1.0), of(1.0, shape=(4, 1))], r"model 1: w\.weight has shape \(4, 1\), expected \(2, 2\)"),
    "integer": (
        [of(1.0), of(1, torch.int64)],
        r"model 1: w\.weight is of torch\.int64, which is not merged with torch\.float32",
    ),
    "integers": ([of(1, torch.int32), of(1, torch.int64)], "torch.int64, which is not merged with torch.int32"),
    "complex": ([of(1.0, torch.complex64)] * 2, "is of torch.complex64"),
    "float8": ([of(1.0, torch.float8_e4m3fn)] * 2, "is of torch.float8_e4m3fn"),
    "none": ([], "there are no models"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_do_not_fit(name):
    models, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        merged(*models)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coefficients": [NAN, 1.0]}, "--coefficients"),
        ({"coefficients": [INF, 1.0]}, "--coefficients"),
        ({"coefficients": [0.0, 0.0]}, "--coefficients sum to 0"),
        ({"coefficients": [0.3, -0.3]}, "--coefficients sum to 0"),
        (
            {"coefficients": [1e5, 1e5]},
            r"w\.weight: the simple merge of model 0, model 1 has values beyond torch\.float16",
        ),
        ({"exclude": ["nothing"]}, "--exclude 'nothing' matches no tensor of model 0"),
        ({"exclude": ["("]}, r"--exclude '\(' is no regular expression"),
        ({"regmean_exclude": ["["]}, r"--regmean_exclude '\[' is no regular expression"),
        ({"exclude": [".*"]}, "there is nothing to merge"),
        ({"ridge": NAN}, "--ridge"),
        ({"smoothing": INF}, "--smoothing"),
        ({"combine_flags": ["scale=1"]}, "--combine_flags scale=1: simple has flags of its own"),
        ({"method": "ties", "combine_flags": ["scalee=1"]}, "unknown flag '--scalee=1'; did you mean '--scale'"),
        ({"method": "ties", "coefficients": [1.0, -2.0]}, "--coefficients: -2 is not"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        merged(of(1.0, half), of(2.0, half), **settings)


def test_negative_coefficients_are_for_simple_only():
    assert (merged(of(1.0), of(2.0), coefficients=[-1.0, 2.0])["w.weight"] == 3).all()
    statistics = [Statistics({FISHER + "w.weight": torch.ones(2, 2)}, {})] * 2
    with pytest.raises(UserError, match="--coefficients: -1 is not"):
        merged(of(1.0), of(2.0), statistics=statistics, method="fisher", coefficients=[-1.0, 2.0])


@pytest.mark.parametrize("method", OTHERS)
def test_a_rule_merges_whole_models_as_it_merges_states(method):
    """theta_0 + rule(theta_i - theta_0) of all tensors together, whole numbers as they are; without a base the models."""
    torch.manual_seed(0)
    base, *models = ({"a": torch.randn(3, 4), "b": torch.randn(5), "n": torch.tensor([7])} for _ in range(3))
    found = dict(merge_models(models, MergeConfig(method=method, coefficients=[0.25, 0.75]), base=base))
    weights = torch.tensor([0.25, 0.75], dtype=double)
    taus = [{name: model[name].double() - base[name].double() for name in ("a", "b")} for model in models]
    wanted = RULES[method].apply(taus, weights, RULES[method].flags())
    assert found.keys() == base.keys() and torch.equal(found["n"], base["n"])
    for name in ("a", "b"):
        torch.testing.assert_close(found[name], (base[name].double() + wanted[name]).float(), rtol=0, atol=0)
    alone = dict(merge_models(models, MergeConfig(method=method)))
    wanted = RULES[method].apply(
        [{"a": m["a"], "b": m["b"]} for m in models], torch.full((2,), 0.5), RULES[method].flags()
    )
    torch.testing.assert_close(alone["a"], wanted["a"].float(), rtol=0, atol=0)
    with pytest.raises(UserError, match=r"--base has no a of shape \(3, 4\); --exclude it"):
        dict(merge_models(models, MergeConfig(method=method), base={"a": base["b"], "b": base["b"]}))
    with pytest.raises(UserError, match=f"{method} takes no statistics"):
        dict(merge_models(models, MergeConfig(method=method), [Statistics({}, {})] * 2, base=base))


@pytest.mark.parametrize(
    ("method", "key", "bad"),
    [("fisher", FISHER + "w.weight", NAN), ("fisher", FISHER + "w.weight", -1.0), ("regmean", GRAM + "w", INF)],
)
def test_statistics_that_are_not_sound(method, key, bad):
    good = {GRAM + "w": torch.eye(2).double(), FISHER + "w.weight": torch.ones(2, 2)}
    damaged = {**good, key: torch.full((2, 2), bad)}
    statistics = [Statistics(one, {"labels": [], "conv1d": []}) for one in (good, damaged)]
    with pytest.raises(UserError, match=f"statistics 1: {key} has values that are not finite, or below 0"):
        merged(of(1.0), of(2.0), statistics=statistics, method=method)


def test_a_label_beyond_the_head():
    heads = [{"classifier.weight": torch.ones(2, 3)}] * 2
    with pytest.raises(UserError, match=r"statistics 1 have a label 2, but classifier\.weight has 2 rows"):
        merged(*heads, statistics=[Statistics({}, {"labels": labels}) for labels in ([0, 1], [0, 2])])


# ---- folders


def folder(path: Path, tensors: dict[str, torch.Tensor], **config) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return str(path)


def statistics(path: Path, model: str, value: float = 1.0, **identity) -> str:
    tensors = {GRAM + "w": value * torch.eye(2).double(), FISHER + "w.weight": torch.full((2, 2), value)}
    made_from = {"model": model_digest(model), "data": "d", "batch_size": 16, **identity}
    write_tensors(path, tensors, made_from, {"labels": [], "conv1d": []})
    return str(path)


@pytest.fixture
def config(tmp_path):
    """RegMean of two folders with their statistics."""
    models = [folder(tmp_path / name, of(value), torch_dtype="float32") for name, value in (("A", 1.0), ("B", 3.0))]
    stats = [statistics(tmp_path / f"{Path(model).name}.safetensors", model) for model in models]
    return fusion_main.Config(models=models, stats=stats, output=str(tmp_path / "M"))


def result(config) -> torch.Tensor:
    return load_file(Path(config.output) / "model.safetensors")["w.weight"]


def test_a_merged_folder_says_what_it_was_made_from(config):
    (Path(config.models[0]) / "tokenizer.json").write_text("{}")
    statistics(Path(config.stats[0]), config.models[0])
    fusion_main.run(config)
    assert torch.allclose(result(config), torch.tensor(2.0))
    record = read_record(Path(config.output) / "fusion.json")
    assert record["models"] == {model: model_digest(model) for model in config.models} and record["method"] == "regmean"
    assert record["model.safetensors"] == file_digest(Path(config.output) / "model.safetensors")
    assert {path.name for path in Path(config.output).glob("[!.]*")} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "fusion.json",
    }


def test_differences_are_taken_from_the_folder_of_the_start(config, tmp_path):
    arithmetic = replace(config, stats=[], method="task_arithmetic", combine_flags=["scale=0.5"])
    for base, value in ((folder(tmp_path / "start", of(0.5)), 0.5 + 0.5 * (0.5 + 2.5)), ("zero", 0.5 * (1.0 + 3.0))):
        fusion_main.run(replace(arithmetic, base=base))
        assert torch.allclose(result(config), torch.tensor(value))
        record = read_record(Path(config.output) / "fusion.json")
        assert record.get("base") == (None if base == "zero" else {base: model_digest(base)})
        assert record["combine_flags"] == ["scale=0.5"]
    with pytest.raises(UserError, match=r"task_arithmetic merges differences: give .* as --base"):
        fusion_main.run(arithmetic)
    with pytest.raises(UserError, match="--base zero: simple takes no differences"):
        fusion_main.run(replace(config, stats=[], method="simple", base="zero"))


def test_the_configuration_names_the_dtype_of_the_weights(config, tmp_path):
    models = [folder(tmp_path / "half", of(1.0, half), torch_dtype="float16"), config.models[1]]
    fusion_main.run(replace(config, models=models, stats=[], method="simple"))
    assert result(config).dtype == single
    assert json.loads((Path(config.output) / "config.json").read_text())["torch_dtype"] == "float32"


def test_statistics_of_a_replaced_model_are_refused(config):
    save_file(of(7.0), Path(config.models[1]) / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError) as caught:
        fusion_main.run(config)
    for word in (config.stats[1], "'model' was", f"python -m pewe.merging.collect --model {config.models[1]}"):
        assert word in str(caught.value)
    assert not Path(config.output).exists()
    with pytest.raises(UserError, match=r"A\.safetensors was made from something else"):
        fusion_main.run(replace(config, models=config.models[::-1]))


def test_statistics_that_were_not_collected_alike(config):
    statistics(Path(config.stats[1]), config.models[1], data="others", batch_size=1)
    with pytest.raises(
        UserError, match=r"B\.safetensors was not collected as .*A\.safetensors: 'batch_size' was 1, is 16"
    ):
        fusion_main.run(config)


def test_folders_that_do_not_fit(config, tmp_path):
    twice = [*config.models, str(tmp_path / "x" / ".." / "A")]
    (tmp_path / "x").mkdir()
    bad = folder(tmp_path / "bad", of(NAN))
    for changes, message in (
        ({"models": twice}, "--models names .*A twice"),
        ({"models": [config.models[0], bad]}, r"bad: tensor w\.weight has values that are not finite"),
        ({"models": [config.models[0], str(tmp_path / "x")]}, "x is no model folder"),
    ):
        with pytest.raises(UserError, match=message):
            fusion_main.run(replace(config, method="simple", stats=[], **changes))
    excluded = replace(config, models=[bad, config.models[0]], method="simple", stats=[], exclude=["v"])
    for one in excluded.models:
        save_file({**of(1.0), "v": torch.tensor([NAN])}, Path(one) / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="bad: tensor v has values that are not finite"):
        fusion_main.run(excluded)


def test_weights_in_many_files(tmp_path):
    parts = {"w": torch.ones(1), "v": torch.zeros(1)}
    path = tmp_path / "M"
    folder(path, parts)
    (path / "model.safetensors").rename(path / "old.safetensors")  # no part of the model
    with pytest.raises(UserError, match="is no model folder"):
        model_tensors(path)
    for number, (name, tensor) in enumerate(parts.items()):
        save_file({name: tensor}, path / f"model-{number}.safetensors")
    files = {name: f"model-{number}.safetensors" for number, name in enumerate(parts)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    found = model_tensors(path)
    assert set(found) == {"w", "v"} and found["w"].item() == 1
    save_file(parts, path / "model-1.safetensors")
    with pytest.raises(UserError, match="tensor w stands in two files"):
        model_tensors(path)
