"""The benchmarks: the plain way and ours give the same numbers, and every command runs on small sizes."""

import pytest
from conftest import METHODS, MINI_TASKS, SMALL

from benchmarks import (
    fusion,
    gpu,
    kl_arithmetic,
    measure,
    merging,
    packing,
    pemt,
    plain,
    roofline,
    scaling,
    scoring,
    table,
    tuning,
)
from pewe.data import Encoded
from pewe.errors import UserError
from pewe.files import read_json
from pewe.merging.store import read_tensors


@pytest.fixture
def small_config(tiny_backbone, tiny_data, tmp_path, monkeypatch):
    """Three tasks, a tiny backbone, results in a folder of the test."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")

    def config(kind, **flags):
        return kind(
            model=str(tiny_backbone),
            task_dir=str(tiny_data),
            tasks=list(MINI_TASKS),
            max_input_length=32,
            max_output_length=6,
            repeats=1,
            **flags,
        )

    return config


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_way_is_a_slow_oracle_of_every_measure(small_config, method):
    config = small_config(scoring.Config, **SMALL[method], predict_batch_size=4)
    scoring.bench(config)
    rows = {row["case"]: row for row in read_json(measure.RESULTS / "scoring.json")["rows"]}
    assert rows.keys() == plain.SCORES.keys()
    for row in rows.values():
        assert row["largest_relative_difference"] < 1e-4, row


def test_stacked_tuning_gives_the_scores_of_tuning_alone(small_config):
    tuning.bench(small_config(tuning.Config, methods=["lora"], lora_r=3, train_iters=4, valid_interval=2, bsz_list=[4]))
    (row,) = read_json(measure.RESULTS / "tuning.json")["rows"]
    assert row["largest_difference_of_a_score"] < 1e-6


def test_packing_on_lines_of_tasks(small_config):
    packing.bench(small_config(packing.Config, methods=["adapter"], stack=3, rows=2))
    rows = read_json(measure.RESULTS / "packing.json")["rows"]
    assert len(rows) == 6 and all(0 < row["real_tokens"] < 1 for row in rows[:3])
    assert all(row["real_tokens"] == 1 and "equal lengths" in row["case"] for row in rows[3:])


def test_the_roofline_of_a_small_size(small_config, monkeypatch):
    small_config(scoring.Config)  # results go into the folder of the test
    monkeypatch.setitem(roofline.SIZES, "mini_t5", (32, 8, 48, 2, 2, 1, 60))
    roofline.bench(
        roofline.Config(sizes=["mini_t5"], dtypes=["float32"], stack=2, rows=2, longest=6, repeats=1, square=64)
    )
    rows = {row["case"].split(",")[0]: row for row in read_json(measure.RESULTS / "roofline.json")["rows"]}
    assert rows.keys() == {"tuning", "scoring", "validation", "merging"}
    for row in rows.values():
        assert row["share"] >= 0 and row["ours_s"] > 0, row
        assert sum(row["parts"].values()) <= 100 and all(value >= 0 for value in row["parts"].values())


def test_stub_units_go_through_the_schedule(small_config):
    scaling.bench(scaling.Config(units=6, steps=2, unit_seconds=0.01))
    (row,) = read_json(measure.RESULTS / "scaling.json")["rows"]
    assert row["case"].startswith("6 units of 0.01 s, no workers") and row["seconds"] >= 0.06 and row["overhead_ms"] > 0


def test_flops_by_hand():
    shape = roofline.shape_of("mini_t5")
    d, h, f, V, r = 128, 128, 256, 1300, 12
    found = roofline.flops(shape, [((1,) * 5, (2,) * 3), ((1,) * 2, (2,))], r)
    by_input = 4 * (4 * d * h + 3 * d * f) + 3 * 2 * d * h
    by_label = 3 * (6 * d * h + 3 * d * f) + V * d
    scores = 4 * (25 + 4) + 3 * (9 + 1 + 15 + 2)
    adapters = 2 * d * r * (4 * 2 * 7 + 3 * 3 * 4)
    assert found.forward == 2 * (7 * by_input + 4 * by_label + 2 * h * scores + adapters)
    first = 3 * d * h * 11  # nothing goes back to q, k and v of the first layers
    back = 2 * (7 * by_input + 4 * by_label - first) + 4 * (2 * h * scores + adapters)
    assert found.update == found.forward + back


def test_kl_arithmetic_and_the_table(small_config):
    kl_arithmetic.bench(kl_arithmetic.Config(vocabulary=300, sources=2, tokens=5, repeats=1))
    (row,) = read_json(measure.RESULTS / "kl_arithmetic.json")["rows"]
    assert row["largest_relative_difference"] < 1e-4
    readme = measure.RESULTS / "README.md"
    readme.write_text(f"before\n{table.START}\nold\n{table.END}\nafter\n")
    table.run(table.Config(readme=str(readme)))
    text = readme.read_text()
    assert "KL arithmetic" in text and "old" not in text and text.startswith("before") and text.endswith("after\n")


def test_plain_merging_and_ours_agree():
    states = [merging.random_state({"x": (3, 2), "y": (4,)}, seed) for seed in range(4)]
    weights = merging.leave_one_out(4)
    for slow, fast in zip(merging.plain_loop(states, weights), merging.merge(states, weights), strict=True):
        assert all((slow[name] - fast[name]).abs().max() < 1e-6 for name in slow)
    numbers = {
        name: sum(a * b for a, b in shapes.values())
        for name, shapes in (("adapter", merging.adapter_shapes()), ("lora", merging.lora_shapes()))
    }
    assert numbers["adapter"] == 1_105_920 and 2.4e6 < numbers["lora"] < 2.8e6


def test_the_gpu_benchmark_on_the_cpu(small_config, monkeypatch):
    monkeypatch.setitem(roofline.SIZES, "mini_t5", (32, 8, 48, 2, 2, 1, 60))
    gpu.bench(
        gpu.Config(
            device="cpu",
            dtype="float32",
            layers=1,
            width=64,
            feed_forward=64,
            vocabulary=100,
            tasks_count=2,
            lines=6,
            updates=2,
            repeats=1,
            roofline=["mini_t5"],
            square=64,
        )
    )
    matrix, tuned, *roof = read_json(measure.RESULTS / "gpu.json")["rows"]
    assert matrix["case"] == "Loss matrix 2 x 2" and matrix["share_of_matmul_peak"] > 0
    assert tuned["case"].startswith("tuning of 2 targets") and tuned["share_of_matmul_peak"] > 0
    assert len(roof) == 4 and roof[0]["case"] == "tuning, mini_t5, float32"


def test_needed_flops_by_hand():
    config = gpu.Config(device="cpu", dtype="float32", layers=1, width=64, feed_forward=32, vocabulary=100)
    task = Encoded("x", (), ((1, 2, 3), (4, 5)), (((6,),), ((7, 8),)))
    attention, feed_forward = 4 * 64 * 64, 3 * 64 * 32
    by_input = attention + feed_forward + attention / 2  # the decoder's keys and values of the encoder's states
    by_label = attention + attention / 2 + feed_forward + 100 * 64
    assert gpu.needed_flops(gpu.backbone(config).model, [task], 3) == 2 * 3 * (5 * by_input + 3 * by_label)


def test_an_update_of_pemt_beside_one_of_an_adapter(small_config):
    small_config(scoring.Config)
    sizes = {"layers": 1, "width": 64, "feed_forward": 32, "vocabulary": 50, "sources": 2, "prompt": 3}
    pemt.run(pemt.Config(**sizes, lines=2, updates=1, repeats=1))
    (row,) = read_json(measure.RESULTS / "pemt.json")["rows"]
    assert row["times_the_adapter"] == pytest.approx(row["ours_s"] / row["plain_s"], rel=0.3)


def test_the_steps_of_the_memory_benchmark(tmp_path):
    config = fusion.Config(folder=str(tmp_path / "new"), models=2, width=64, layers=1, batches=1)
    fusion.build(config)
    fusion.collect_statistics(config)
    found = read_tensors(tmp_path / "new" / "statistics.safetensors")
    assert found.info["examples"] == 16 and found.tensors["gram.bert.encoder.layer.0.output.dense"].shape == (256, 256)
    assert (tmp_path / "new" / "1" / "config.json").is_file()
    with pytest.raises(UserError, match="it must be a new one"):
        fusion.all_steps(config)


def test_a_result_names_no_folder_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    path = measure.write("one", measure.Embedded(model=str(tmp_path / "backbone")), [])
    settings = read_json(path)["settings"]
    assert settings["model"] == "backbone" and settings["task_dir"] == "data/mini_gym"
