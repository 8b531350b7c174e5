"""PEMT against numbers that its original code computed on a tiny T5: forward, losses, gradients, gates, traces, greedy ids."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import new_t5
from safetensors.torch import load_file
from transformers import T5Config

from pewe.backbone import Backbone
from pewe.batches import Batch
from pewe.data import Encoded, Example
from pewe.deltas.attach import attach_delta
from pewe.deltas.config import DeltaConfig
from pewe.deltas.pemt_task import AS_ORIGINAL_LENGTH, measure
from pewe.losses import member_losses
from pewe.tuning.config import TrainConfig
from pewe.tuning.evaluate import greedy
from pewe.tuning.optimizers import clip_gradients, make_optimizer, rate_factor

TOLERANCE = 1e-4
BATCH = ("input_ids", "attention_mask", "labels")


def ours(name: str) -> str:
    """The name of a tensor here: the original writes the target's name into those of its adapters."""
    return name.replace("adapter_controller.adapters.superglue-cb.", "adapter.")


def arrays(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    with np.load(path) as found:
        return {name: torch.from_numpy(np.asarray(found[name])) for name in found.files}


def attach(folder: Path, stage: int, weights: str):
    """The model and a delta of this stage with the tensors of a file of the original."""
    path = folder / f"stage{stage}" / f"{weights}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    state = {ours(name): tensor for name, tensor in load_file(path).items()}
    model = new_t5(T5Config(**json.loads((folder / "config.json").read_text())))
    assert not {name for name in model.state_dict() if name not in state} - {
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "lm_head.weight",
    }
    model.load_state_dict(state, strict=False)
    method = {1: "pemt_source", 2: "pemt"}[stage]
    delta = attach_delta(model, DeltaConfig(tune_method=method, as_original=True))
    delta.describe(range(state["task_shared"].shape[0]))
    if stage == 2:
        delta.set_experts({f"source{i}": load_file(folder / "sources" / f"source{i}.safetensors") for i in range(3)})
    delta.load([{name: state[name] for name in delta.named}])
    return model, delta


def forward(model, delta, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy, and loss with the sparsity term."""
    ce = member_losses(delta, Batch(*(batch[name] for name in BATCH)))
    return ce[0], (ce + delta.extra_loss()).squeeze()


def real_tokens(batch) -> list[list[int]]:
    """The input ids of every row without padding."""
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def close(value, expected, what=""):
    value = value.detach().double()
    worst = float((value - torch.as_tensor(expected).double()).abs().max())
    assert value.shape == torch.as_tensor(expected).shape and worst <= TOLERANCE, (what, worst)


def check_gradients(delta, loss, path):
    for parameter in delta.named.values():
        parameter.grad = None
    loss.backward(retain_graph=True)
    expected = {ours(name): gradient for name, gradient in load_file(path).items()}
    assert expected.keys() <= delta.named.keys()
    for name, parameter in delta.named.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        close(gradient[0], expected.get(name, torch.zeros_like(parameter[0])), name)


def keep_masks(monkeypatch, masks):
    """Replace the dropout of the prompt's attention by these masks, source by source; None leaves the attention as it is."""
    given, original = iter(masks or ()), torch.nn.functional.dropout

    def dropout(x, p=0.5, training=True, inplace=False):
        if p != 0.1:
            return original(x, p, training, inplace)
        return x * next(given) / 0.9 if training and masks is not None else x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)


CASES = [
    (1, "model", "forward", "grads", None),
    *((2, f"model_{n}", f"forward_{n}", f"grads_{n}_total", f"grads_{n}_ce") for n in ("init", "perturbed")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[2])
def test_forward_gradients_and_greedy_ids(golden_pemt, case):
    stage, weights, numbers, total, ce_only = case
    model, delta = attach(golden_pemt, stage, weights)
    folder = golden_pemt / f"stage{stage}"
    expected = arrays(folder / f"{numbers}.npz")
    ce, loss = forward(model, delta, expected)
    close(ce, expected["ce"])
    close(loss, expected["loss"])
    if stage == 2:
        close(delta.gates(), expected["gate"])
        close(delta.imbalances(), expected["imbalance_per_layer"])
    check_gradients(delta, loss, folder / f"{total}.safetensors")
    if ce_only:
        check_gradients(delta, ce, folder / f"{ce_only}.safetensors")
    batch = {name: expected[name] for name in BATCH}
    with torch.no_grad():
        out = model(**batch, use_cache=False, output_hidden_states=True)
    close(out.logits, expected["logits"])
    close(out.encoder_hidden_states[0], expected["encoder_inputs_embeds"])
    close(out.encoder_last_hidden_state, expected["encoder_last"])
    close(out.decoder_hidden_states[-1], expected["decoder_last"])
    ids = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_length=12,
        num_beams=1,
        do_sample=False,
        use_cache=False,
    )
    assert torch.equal(ids, expected["generated"])
    assert torch.equal(greedy(delta, [real_tokens(batch)], 12), expected["generated"])


@pytest.mark.parametrize("name", ["init", "perturbed"])
def test_dropout_of_the_prompt(golden_pemt, name, monkeypatch):
    model, delta = attach(golden_pemt, 2, f"model_{name}")
    batch = arrays(golden_pemt / "stage2" / f"forward_{name}.npz")
    expected = arrays(golden_pemt / "stage2" / f"forward_{name}_dropout.npz")
    keep_masks(monkeypatch, [expected[f"keep_mask_source{i}"] for i in range(3)])
    model.train()
    ce, loss = forward(model, delta, batch)
    close(ce, expected["ce"])
    close(loss, expected["loss"])
    close(delta.gates(), expected["gate"])
    close(delta.imbalances(), expected["imbalance_per_layer"])
    check_gradients(delta, loss, golden_pemt / "stage2" / f"grads_{name}_dropout.safetensors")


TRACES = [
    (1, "model", "trace", 5e-4, 3),
    (2, "model_init", "trace_nodrop", 3e-4, 0),
    (2, "model_init", "trace_dropout", 3e-4, 0),
    (2, "model_perturbed", "trace_perturbed_nodrop", 3e-3, 0),
]


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: f"{trace[0]}-{trace[2]}")
def test_fifteen_steps(golden_pemt, trace, monkeypatch):
    """The original's batches through our loss, clip, schedule and AdamW."""
    stage, weights, name, rate, warm_up = trace
    expected = arrays(golden_pemt / f"stage{stage}" / f"{name}.npz")
    model, delta = attach(golden_pemt, stage, weights)
    snapshots = {ours(key): t for key, t in load_file(golden_pemt / f"stage{stage}" / f"{name}.safetensors").items()}
    config = TrainConfig(train_iters=15, warmup_steps=warm_up, lr_decay_style="linear")
    optimizer = make_optimizer(delta, [rate], "adamw")
    model.train()
    for step in range(1, 16):
        batch = {key: expected[f"step{step:02d}/{key}"] for key in BATCH}
        masks = [expected[f"step{step:02d}/keep_mask_source{i}"] for i in range(3)] if name == "trace_dropout" else None
        keep_masks(monkeypatch, masks)
        ce, loss = forward(model, delta, batch)
        close(loss, expected["loss"][step - 1], step)
        close(ce, expected["ce"][step - 1], step)
        if stage == 2:
            close(delta.gates().mean(1), expected["gate_mean_batch"][step - 1], step)
            close(delta.imbalances().mean(), expected["imbalance_mean"][step - 1], step)
        loss.backward()
        close(clip_gradients(delta, 1.0).squeeze(), expected["grad_norm_before_clip"][step - 1], step)
        learning_rate = rate * rate_factor(config, step)
        assert learning_rate == pytest.approx(float(expected["lr"][step - 1]), abs=1e-9)
        optimizer.param_groups[0]["lr"] = torch.tensor(learning_rate)
        optimizer.step()
        optimizer.zero_grad()
        for key, tensor in snapshots.items():
            when, _, parameter = key.partition("/")
            if when == f"step{step:02d}":
                close(delta.named[parameter][0], tensor, (step, parameter))


def test_evaluation_of_a_split(golden_pemt):
    """Loss, gate weights (a mean over batches) and the 20 ids that the original generates, from 11 lines in batches of 4."""
    model, delta = attach(golden_pemt, 2, "model_perturbed")
    batches = arrays(golden_pemt / "stage2" / "evaluate.npz")
    expected = json.loads((golden_pemt / "stage2" / "evaluate.json").read_text())
    inputs, labels = [], []
    for number in range(3):
        ids, mask, label = (batches[f"batch{number}/{name}"] for name in BATCH)
        inputs += [tuple(row[m.bool()].tolist()) for row, m in zip(ids, mask, strict=True)]
        labels += [(tuple(row[row != -100].tolist()),) for row in label]
    encoded = Encoded("task", tuple(Example("x", ("y",)) for _ in inputs), tuple(inputs), tuple(labels))
    backbone = Backbone(model, None, torch.device("cpu"))
    loss, gates = measure(backbone, delta, encoded, 4, over_batches=True)
    assert loss == pytest.approx(expected["test_loss"], abs=TOLERANCE)
    for number, weight in enumerate(gates.mean(0).tolist()):
        assert weight == pytest.approx(expected[f"test_moe_weight_{number}"], abs=TOLERANCE)
    row = 0
    for number in range(3):
        given = {name: batches[f"batch{number}/{name}"] for name in BATCH[:2]}
        ids = greedy(delta, [real_tokens(given)], AS_ORIGINAL_LENGTH)
        want = batches["predictions"][row : row + len(ids), : ids.shape[1]]
        assert torch.equal(ids, want)
        row += len(ids)
