"""What tests/golden holds numbers of: every case computes them on tiny random T5s, from weights and inputs of `conftest.draws`."""

import contextlib
import itertools
from functools import partial

import numpy as np
import torch
from conftest import (
    LINES_OF,
    METHODS,
    MINI_TASKS,
    ROOT,
    SMALL,
    VERSIONS,
    draws,
    filled,
    flags_of,
    random_batch,
    random_state,
    similarity_config,
    small,
    tiny_t5,
    write_tuned_pairs,
)
from golden import fusion
from golden.compare import Numbers, summaries, summary

from data.build.pemt_splits import few_shot, permutation
from get_similarity import MEASURES
from pewe import metrics
from pewe.backbone import BackboneConfig, load_backbone
from pewe.batches import Batch, training_updates
from pewe.data import SPLITS, DataConfig, Encoded, Example, load_split
from pewe.deltas.attach import attach_delta
from pewe.deltas.checkpoint import ensemble_checkpoint, read_checkpoint, write_checkpoint
from pewe.deltas.config import DeltaConfig
from pewe.files import read_json, read_table
from pewe.losses import member_losses
from pewe.merging import weights
from pewe.no_delta import NoDelta
from pewe.similarity.loop import run
from pewe.tuning import evaluate
from pewe.tuning.config import TuneConfig
from pewe.tuning.optimizers import clip_gradients, make_optimizer
from pewe.tuning.tune import tune
from task_list import METRICS
from unit_model import (
    unit_model_average,
    unit_model_cos,
    unit_model_Euclidean,
    unit_model_others,
    unit_model_Performance,
)


@contextlib.contextmanager
def decided(model):
    """Greedy generation in which no token is chosen by a hair's breadth, that another machine's rounding could turn."""
    gaps = []

    def look(module, args, logits):
        first, second = logits[:, -1].topk(2).values.T
        gaps.append((first - second).min().item())

    hook = model.lm_head.register_forward_hook(look)
    yield
    hook.remove()
    assert min(gaps) > 3e-4, f"two tokens differ by {min(gaps):.2g}: choose other weights or inputs"


# ---- deltas


def model(version: str, name: str, world) -> Numbers:
    """Logits, loss, gradients and greedy ids of a tiny T5 with a random delta."""
    backbone, batch = tiny_t5(**VERSIONS[version]), random_batch(3)
    delta = filled(backbone, name, 1)[0] if name in SMALL else None
    found = {"logits": summary(backbone(**batch).logits)}
    loss = member_losses(delta or NoDelta(backbone), Batch(**batch))
    found["loss"] = summary(loss)
    if delta:
        loss.sum().backward()
        found |= summaries({name: parameter.grad for name, parameter in delta.named.items()}, "gradient of ")
    with decided(backbone):
        ids = backbone.generate(
            batch["input_ids"], attention_mask=batch["attention_mask"], max_length=8, num_beams=1, do_sample=False
        )
    return {**found, "ids": ids.flatten().tolist()}


def steps(name: str, changes: dict, world) -> Numbers:
    """Losses of every update and the last tensors of tuning from a random delta."""
    task, out = MINI_TASKS[0], world.scratch()
    delta = attach_delta(tiny_t5(), small(name))
    write_checkpoint(
        ensemble_checkpoint(out / "init", task), delta.delta_config.tune_method, random_state(delta, name, 0.1), {}
    )
    tune(
        TuneConfig(
            model=str(world.backbones["v1.1"]),
            task_dir=str(world.data),
            tasks=[task],
            device="cpu",
            quiet=True,
            do_train=True,
            train_checkpoint=str(out / "init"),
            output_dir=str(out / "runs"),
            learning_rate_list=[1e-2],
            train_iters=5,
            valid_interval=1,
            max_input_length=32,
            max_output_length=6,
            **{"bsz_list": [4], **SMALL[name], **changes},
        )
    )
    (run,) = (path.parent for path in out.glob("runs/*/*/*/run.json"))
    history = read_json(run / "run.json")["result"]["history"]
    last = torch.load(run / "resume.pt", weights_only=True)["delta"]
    return {"losses": [row["loss"] for row in history if row["updates"]], **summaries(last)}


def pemt(stage: int, version: str, flags: dict, world) -> Numbers:
    """Losses, gates, imbalances and gradients of PEMT, and the losses of four steps of its optimiser."""
    sizes, experts = {"expert_rank": 5, "target_adapter_size": 3, "prompt_dropout": 0.0}, {}
    source = attach_delta(tiny_t5(**VERSIONS[version]), DeltaConfig(tune_method="pemt_source", **sizes))
    for number in range(3):
        source.describe(range(5, 8 + number))
        experts[f"source{number}"] = random_state(source, f"source {number}")
    delta = source
    if stage == 2:
        delta = attach_delta(tiny_t5(**VERSIONS[version]), DeltaConfig(tune_method="pemt", **sizes, **flags))
        delta.describe([7, 9, 7, 11])
        delta.set_experts(experts)
    delta.load([random_state(delta, "target")])
    found, losses, optimizer = {}, [], make_optimizer(delta, [1e-2], "adamw")
    for step in range(4):
        loss = member_losses(delta, Batch(**random_batch(3, seed=step))) + delta.extra_loss()
        loss.sum().backward()
        if step == 0:
            found = summaries({name: parameter.grad for name, parameter in delta.named.items()}, "gradient of ")
            if stage == 2:
                found |= {"gates": summary(delta.gates()), "imbalances": summary(delta.imbalances())}
        clip_gradients(delta, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, **found}


def answers(method: str, world) -> Numbers:
    """What the embedded backbone with a random delta answers, and its scores."""
    backbone, found = load_backbone(BackboneConfig(model=str(ROOT / "checkpoints" / "mini_t5"), device="cpu")), {}
    delta = attach_delta(backbone.model, small(method))
    delta.load([random_state(delta, method, 0.1)])
    for task in MINI_TASKS[:2]:
        whole = load_split(
            backbone.tokenizer,
            DataConfig(task_dir=str(world.data), max_input_length=64, max_output_length=8),
            task,
            f"{task}_64_42",
            "dev",
        )
        (texts,) = evaluate.generate(backbone, delta, [whole], 5, 8)
        golds = [example.outputs for example in whole.examples]
        found |= {f"{task}: answers": texts, f"{task}: score": [metrics.evaluate(METRICS[task], texts, golds)]}
    return found


# ---- similarities, weights, ensembles

MODES = {
    **{name: (name, {}) for name, measure in MEASURES.items() if not measure.matrix},  # the others are of no delta
    "GraNd_block": ("GraNd", {"mode": "block"}),
    "GraNd_layer": ("GraNd", {"mode": "layer"}),
}
FOUR = ["adversarialqa", "boolq", "codah", "dream"]


def similarity(name: str, method: str, version: str, changes: dict, world) -> Numbers:
    """A row of the matrix for every target and scope."""
    measure, flags = MODES[name]
    measured = MEASURES[measure]
    config = similarity_config(
        world.backbones[version],
        world.paper_data,
        world.checkpoints,
        world.scratch(),
        method,
        tasks=["boolq", "web_questions"],
        source_tasks=["ai2_arc", "boolq", "codah", "web_questions"],
        **changes,
    )
    table = run(measured, flags_of(measured.config, config, **flags))
    return {f"{target} {scope}": rows["value"].tolist() for (target, scope), rows in table.groupby(["target", "scope"])}


def ensemble(module, method: str, flags: dict, world) -> Numbers:
    """Weights and merged deltas of a unit_model script."""
    out = world.scratch()
    paths = {
        "source_ckpt_path": world.checkpoints / method / "source",
        "save_ckpt_path": out / "out",
        "tuned_64shot_ckpt_path": world.checkpoints / method / "random",
        "origin_data_path": out,
        "tuned_ckpt_path": out / "pairs",
        "zero_result_path": out / "pairs" / "zero.tsv",
    }
    write_tuned_pairs(out / "pairs", world.checkpoints / method / "source", method, FOUR)
    S = draws("similarities", 4, 4).abs().tolist()
    rows = [f"{t}\t{s}\tall\t{S[i][j]!r}" for (i, t), (j, s) in itertools.product(enumerate(FOUR), enumerate(FOUR))]
    (out / "result.tsv").write_text("\n".join(["target\tsource\tscope\tvalue", *rows]) + "\n")
    known = {name: str(path) for name, path in paths.items() if name in module.Config.__dataclass_fields__}
    module.run(module.Config(delta=method, quiet=True, **{"tasks": FOUR, **known, **flags}))
    table = read_table(out / "out" / "final_weight.tsv", ["target", "source", "weight"])
    found = {f"weights of {task}": rows["weight"].tolist() for task, rows in table.groupby("target")}
    for task in table["target"].unique():
        state = read_checkpoint(ensemble_checkpoint(out / "out", task), method)
        found[f"delta for {task}"] = summary(torch.cat([state[name].flatten() for name in sorted(state)]))
    return found


def temperatures(world) -> Numbers:
    """Softmax weights in both orientations, and the temperature of an effective number."""
    S, found = draws("S", 6, 7).double(), {}
    allowed = weights.allowed_sources("abcdef", "abcdefg")
    for higher in (False, True):
        found[f"softmax, higher {higher}"] = summary(weights.softmax_weights(S, 0.3, higher, allowed))
        found[f"temperature, higher {higher}"] = [weights.temperature_for(S, 3.0, higher, allowed)]
    return found


# ---- data and metrics

WORDS = ["the red house", "a red barn.", "red", "House of red", "blue, and green", "the"]
NUMBERS = ["1", "2.5", "-3", "40"]
TEXTS = {
    "Matthew-Correlation": ["acceptable", "unacceptable"],
    "Matthews": ["yes", "no"],
    "MultiRC": ["True", "False", "?"],
    "Classification-F1": ["a", "b", "c"],
    "Pearson-Correlation": NUMBERS,
    "Pearson-Spearman": NUMBERS,
}


def metric(name: str, world) -> Numbers:
    """The score of thirty drawn answers, and of each ten."""
    texts, generator = TEXTS.get(name, WORDS), np.random.RandomState(0)
    predictions = [texts[i] for i in generator.randint(len(texts), size=30)]
    golds = [
        (texts[i], texts[j])
        for i, j in generator.randint(min(len(texts), 2 if name == "MultiRC" else 99), size=(30, 2))
    ]
    if name == "MultiRC":  # the question stands behind its answer
        golds = [(answer, str(number // 3)) for number, (answer, _) in enumerate(golds)]
    parts = [slice(0, 30), slice(0, 10), slice(10, 20), slice(20, 30)]
    return {"scores": [metrics.evaluate(name, predictions[part], golds[part]) for part in parts]}


def tokens(world) -> Numbers:
    """Ids of the first two lines of every split."""
    tokenizer, found = load_backbone(BackboneConfig(model=str(world.backbones["v1.1"]), device="cpu")).tokenizer, {}
    config = DataConfig(task_dir=str(world.paper_data), max_input_length=32, max_output_length=12)
    for task, split in itertools.product(LINES_OF, SPLITS):
        encoded = load_split(tokenizer, config, task, f"{task}_64_42", split)
        flat = [encoded.inputs[:2], *encoded.outputs[:2]]
        found[f"{task} {split}"] = [number for sequences in flat for sequence in sequences for number in sequence]
    return found


def orders(world) -> Numbers:
    """Which lines an update, a split or a few-shot draw takes."""
    lines = tuple((i, 1) for i in range(10))
    encoded = Encoded(
        "task", tuple(Example(str(i), ("x",)) for i in range(10)), lines, tuple(((5,), (6,)) for _ in lines)
    )
    found = {}
    for name, accumulate, full in (("plain", 1, True), ("accumulated", 2, True), ("original", 2, False)):
        updates = itertools.islice(training_updates(encoded, "42/task", 4, accumulate, full), 6)
        rows = [row for update in updates for micro in update for row in micro]
        found[name] = [number for (line, _), label in rows for number in (line, *label)]
    classes = [["a", "b", "c", None][i % 7 % 4] for i in range(40)]
    return {**found, "permutation": permutation(57), "few_shot": few_shot(classes, 4, 42)}


# ---- all cases

BUDGETS = {"as original": {"as_original": True}, "mean of all batches": {"max_batches": -1, "reduction": "mean"}}
PEMT = {
    "as original": {"as_original": True},
    "no gate": {"pemt_gate": False},
    "no prompt": {"pemt_prompt": False},
    "no adapter": {"pemt_adapter": False},
}
GROUPS = ["codah", "dream", "qasc", "boolq", "mc_taco"]
ENSEMBLES = {
    "average": (unit_model_average, METHODS, {}),
    "manual division": (unit_model_average, ["adapter"], {"manual_division": True, "tasks": GROUPS}),
    "by similarity": (unit_model_others, METHODS, {"tem": 0.5}),
    "by similarity, higher": (unit_model_others, ["adapter"], {"tem": 0.5, "orientation": "higher"}),
    "by similarity, effective": (unit_model_others, ["adapter"], {"effective": 2.0}),
    "cosine": (unit_model_cos, METHODS, {"temperature": 0.05}),
    "Euclidean": (unit_model_Euclidean, METHODS, {"tem": 0.5}),
    "Performance": (unit_model_Performance, METHODS, {"tem": 0.3}),
}
STEPS = {
    "constant": {},
    "warm-up": {"warmup_steps": 3, "lr_decay_style": "constant_with_warmup"},
    "accumulated": {"bsz_list": [8], "micro_batch_size": 4},
    "as original": {"bsz_list": [8], "micro_batch_size": 4, "as_original": True},
}
CASES = {
    **{f"model/{v}, {name}": partial(model, v, name) for v in VERSIONS for name in ("none", *SMALL)},
    **{
        f"steps/{method}, {how}": partial(steps, method, changes)
        for method in METHODS
        for how, changes in STEPS.items()
    },
    "steps/pfeiffer, constant": partial(steps, "pfeiffer", {}),
    **{f"pemt/stage {stage}, {v}": partial(pemt, stage, v, {}) for stage in (1, 2) for v in VERSIONS},
    **{f"pemt/stage 2, {name}": partial(pemt, 2, "v1.1", flags) for name, flags in PEMT.items()},
    **{f"answers/{method}": partial(answers, method) for method in METHODS},
    **{
        f"similarity/{name}, {method}, {v}": partial(similarity, name, method, v, {})
        for name in MODES
        for method in METHODS
        for v in VERSIONS
    },
    **{
        f"similarity/{name}, {how}": partial(similarity, name, "adapter", "v1.1", changes)
        for name in MODES
        for how, changes in BUDGETS.items()
    },
    **{
        f"weights/{name}, {method}": partial(ensemble, module, method, flags)
        for name, (module, methods, flags) in ENSEMBLES.items()
        for method in methods
    },
    "weights/temperatures": temperatures,
    **{
        f"fusion/{name}, {method}": partial(fusion.of_deltas, name, method)
        for name in SMALL
        for method in ("fisher", "regmean")
    },
    **{f"fusion/{name}": partial(fusion.of_models, name, False) for name in fusion.BACKBONES},
    **{f"fusion/{name}, as original": partial(fusion.of_models, name, True) for name in fusion.BACKBONES},
    "fusion/ensembles": fusion.of_predictions,
    **{f"metrics/{name}": partial(metric, name) for name in metrics.METRICS},
    "data/tokens": tokens,
    "data/orders": orders,
}
