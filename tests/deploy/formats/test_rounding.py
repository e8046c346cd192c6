"""Weights in bytes: errors cancel on what the layer is given, and no sum of two neighbours is too large."""

import numpy as np
import pytest

from tests.deploy.formats.small import make_images
from vivid_monai.deploy.formats.onnx_classifier import INPUT, OnnxClassifier, need
from vivid_monai.deploy.formats.rounding import input_moments, round_weight


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((96, 40)).astype("f4")


def plain(weight: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.rint(weight / scales) * scales


def test_errors_cancel_on_inputs_that_go_together(weight):
    random = np.random.default_rng(1)
    inputs = random.standard_normal((500, 6)) @ random.standard_normal((6, 96)) + 0.05 * random.standard_normal(
        (500, 96)
    )
    values, scales = round_weight(weight, (inputs.T @ inputs).astype("f4"))
    assert (values.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (40,))
    new = random.standard_normal((200, 6)) @ random.standard_normal((6, 96))  # that go together otherwise
    errors = [np.linalg.norm(inputs @ (one - weight)) for one in (values * scales, plain(weight, scales))]
    assert errors[0] < 0.2 * errors[1]
    assert np.linalg.norm(new @ (values * scales - weight)) < 3 * np.linalg.norm(new @ (plain(weight, scales) - weight))


def test_inputs_that_have_nothing_in_common_are_rounded_to_the_nearest(weight):
    values, scales = round_weight(weight, np.eye(96, dtype="f4"))
    np.testing.assert_array_equal(values, np.rint(weight / scales))


@pytest.mark.parametrize("moments", ["one direction", "nothing"])
def test_neighbours_fit_into_16_bits_whatever_the_inputs(weight, moments):
    direction = np.random.default_rng(2).standard_normal(96).astype("f4")
    given = np.outer(direction, direction) if moments == "one direction" else np.zeros((96, 96), "f4")
    weight[:2] = 3 * np.abs(weight).max()  # two neighbours that take all the room there is
    values, _ = round_weight(weight, given)
    pairs = values.astype(int).reshape(-1, 2, 40)
    assert pairs.clip(min=0).sum(1).max() <= 128
    assert pairs.clip(max=0).sum(1).min() >= -128
    assert np.abs(values).max() <= 127


def test_an_output_without_weights_stays_without(weight):
    weight[:, 3] = 0
    values, scales = round_weight(weight, np.eye(96, dtype="f4"))
    assert (values[:, 3] == 0).all()
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_moments_are_those_of_the_inputs_with_the_first_token_as_heavy_as_all_others(onnx_file):
    onnx, classifier, images = need("onnx"), OnnxClassifier(onnx_file), make_images(11).numpy()
    model = onnx.load(onnx_file)
    weights = {one.name for one in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights][:3]
    got = input_moments(classifier, model, [node.name for node in products], iter(images))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(node.input[0]) for node in products)
    session = need("onnxruntime").InferenceSession(model.SerializeToString())
    for node in products:
        (inputs,) = session.run([node.input[0]], {INPUT: images})
        first, others = inputs[:, 0], inputs[:, 1::7].reshape(-1, inputs.shape[2])
        wanted = first.T @ first + others.T @ others * 11 / len(others)
        np.testing.assert_allclose(got[node.input[0]], wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    assert len(got) == len({node.input[0] for node in products})
