"""8 bits: nearly the same answers, whatever else is in the batch."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from tests.deploy.small import FIELDS, PREPROCESS, make_classifier, make_images
from vivid_monai.deploy import quantize as module
from vivid_monai.deploy.export import export_onnx
from vivid_monai.deploy.onnx import INPUT, OnnxClassifier
from vivid_monai.deploy.quantize import input_moments, quantize_onnx, round_weight
from vivid_monai.errors import VividError

TRAINING = make_images(40, seed=2)


@pytest.fixture(scope="module")
def small_file(onnx_file, tmp_path_factory):
    return quantize_onnx(onnx_file, tmp_path_factory.mktemp("int8") / "new" / "c.onnx", TRAINING)


def weights_in_bytes(path) -> dict[str, tuple[int, ...]]:
    graph = onnx.load(path).graph
    return {one.name: tuple(one.dims) for one in graph.initializer if one.data_type == 3 and len(one.dims) == 2}


def layer(tokens: np.ndarray, weight: np.ndarray, *, after_gelu: bool = False, by_definition=False) -> np.ndarray:
    """The answer of one layer in bytes, of ONNX Runtime or of ONNX's own slow definition of its operators."""
    helper = onnx.helper
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None, None]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["h" if after_gelu else "x", "w"], ["y"], name="linear")]
    if after_gelu:
        nodes.insert(0, helper.make_node("Gelu", ["x"], ["h"]))
    graph = helper.make_graph(nodes, "one", value[:1], value[1:], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    module._quantize(model, {"h" if after_gelu else "x": np.eye(len(weight), dtype="f4")})
    onnx.checker.check_model(model)
    if by_definition:
        return ReferenceEvaluator(model).run(["y"], {"x": tokens})[0]
    return onnxruntime.InferenceSession(model.SerializeToString()).run(["y"], {"x": tokens})[0]


def test_answers_are_nearly_the_same(small_file, onnx_file):
    images = make_images(64)
    whole, small = OnnxClassifier(onnx_file), OnnxClassifier(small_file)
    for got, wanted in zip(small(images), whole(images), strict=True):
        error = np.sqrt(((got - wanted) ** 2).mean())
        assert 0 < error < 0.02 * wanted.std()
    assert small_file.stat().st_size < 0.35 * onnx_file.stat().st_size
    assert [one.name for one in small_file.parent.iterdir()] == ["c.onnx"]


@pytest.mark.numeric
def test_an_answer_does_not_hang_on_the_batch(small_file):
    small, images = OnnxClassifier(small_file), make_images(8)
    images[4] *= 20  # with a range taken from the batch, all others would be coarse
    together = small(images)[0]
    for i in range(8):
        np.testing.assert_allclose(small(images[i : i + 1])[0][0], together[i], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("after_gelu", [False, True])
def test_large_tokens_make_no_others_coarse(after_gelu):
    random = np.random.default_rng(0)
    tokens = random.standard_normal((2, 5, 64)).astype("f4")
    tokens[0, 1] *= 1e4
    if not after_gelu:  # there, values far below a step of the shift, 0.17 / 255, are lost
        tokens[1, 2] *= 1e-4
        tokens[1, 4] = 0
    weight, channels = random.standard_normal((64, 32)).astype("f4"), np.geomspace(1e-3, 1e3, 32, dtype="f4")
    weight[:, 7] = 0
    inputs = torch.nn.functional.gelu(torch.from_numpy(tokens)).numpy() if after_gelu else tokens
    got, wanted = layer(tokens, weight * channels, after_gelu=after_gelu) / channels, inputs @ weight
    error, size = (np.linalg.norm(one, axis=-1) for one in (got - wanted, wanted))
    assert (error <= 0.015 * size).all()


@pytest.mark.parametrize("after_gelu", [False, True])
def test_the_first_token_loses_nothing_but_what_its_weights_lose(after_gelu):
    """The head reads it alone, and images differ in it by little."""
    random = np.random.default_rng(0)
    tokens = random.standard_normal((3, 5, 64)).astype("f4")
    weight = random.integers(-60, 61, (64, 32)).astype("f4")
    weight[::2], weight[:2] = 0, [[127], [0]]  # no two neighbours add up: bytes hold these weights exactly
    inputs = torch.nn.functional.gelu(torch.from_numpy(tokens)).numpy() if after_gelu else tokens
    wanted = inputs @ weight
    error = np.abs(layer(tokens, weight, after_gelu=after_gelu) - wanted).max(-1) / np.abs(wanted).max(-1)
    assert (error[:, 0] < 1e-4).all()
    assert (error[:, 1:] > 1e-3).all()


@pytest.mark.numeric
@pytest.mark.parametrize("after_gelu", [False, True])
def test_other_runtimes_answer_the_same(after_gelu):
    """ONNX Runtime makes one operator of several and looks at not all that they say."""
    random = np.random.default_rng(0)
    tokens, weight = (random.standard_normal(shape).astype("f4") for shape in ((2, 5, 64), (64, 32)))
    ours, theirs = (layer(tokens, weight, after_gelu=after_gelu, by_definition=one) for one in (False, True))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_a_classifier_with_outliers_answers_nearly_the_same(tmp_path):
    """Some channels are far larger than all others, as in large networks (arXiv:2208.07339)."""
    ours = make_classifier()
    with torch.no_grad():
        for block in ours.encoder.blocks:
            for norm in (block.norm1, block.norm2):
                norm.weight[5:7] *= 20
            block.attn.qkv.weight[2 * 128 + 3] *= 20
            block.mlp.linear1.weight[7] *= 20
    whole = export_onnx(ours, tmp_path / "c.onnx", preprocess=PREPROCESS, fields=FIELDS)
    small, images = quantize_onnx(whole, tmp_path / "s.onnx", TRAINING), make_images(64)
    for got, wanted in zip(OnnxClassifier(small)(images), OnnxClassifier(whole)(images), strict=True):
        assert np.sqrt(((got - wanted) ** 2).mean()) < 0.1 * wanted.std()
        assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.995


def test_after_gelu_all_steps_are_used():
    """Without the shift, half of them would be for negative values, which are few and small."""
    random = np.random.default_rng(0)
    tokens, weight = (random.standard_normal(shape).astype("f4") for shape in ((1, 200, 512), (512, 64)))
    hidden = torch.nn.functional.gelu(torch.from_numpy(tokens)).numpy()
    with_shift, without = layer(tokens, weight, after_gelu=True), layer(hidden, weight)
    assert np.linalg.norm(with_shift - hidden @ weight) < 0.85 * np.linalg.norm(without - hidden @ weight)


def test_no_sum_of_two_neighbours_leaves_16_bits(small_file):
    """Processors without VNNI cut it off."""
    weights = [
        onnx.numpy_helper.to_array(one).astype(int)
        for one in onnx.load(small_file).graph.initializer
        if one.data_type == onnx.TensorProto.INT8
    ]
    assert len(weights) == 24
    for weight in weights:
        pairs = weight.reshape(-1, 2, weight.shape[1])
        most, least = 255 * pairs.clip(min=0).sum(1).max(0), 255 * pairs.clip(max=0).sum(1).min(0)
        assert most.max() < 2**15
        assert least.min() >= -(2**15)
        assert np.maximum(most, -least).min() > 255 * 124, "steps are given away"


def test_linear_layers_are_in_bytes_per_channel_and_all_else_is_not(small_file):
    graph = onnx.load(small_file).graph
    shapes = sorted(weights_in_bytes(small_file).values())
    assert shapes == sorted(6 * [(128, 384), (128, 128), (128, 512), (512, 128)])
    scales = [one for one in graph.initializer if one.name.endswith(".scale") and len(one.dims) == 1]
    assert sorted(one.dims[0] for one in scales) == sorted(6 * [384, 128, 512, 128])
    heads = [one for one in graph.initializer if one.name == "classifier.head.weight"]
    assert [one.data_type for one in heads] == [onnx.TensorProto.FLOAT]
    counts = Counter(node.op_type for node in graph.node)
    assert (counts["QuantizeLinear"], counts["Sub"]) == (48, 30)
    assert {node.domain for node in graph.node} == {""}
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_what_belongs_to_it_survives_and_nothing_else_gets_in(small_file, onnx_file):
    whole, small = OnnxClassifier(onnx_file).metadata, OnnxClassifier(small_file).metadata
    assert small == whole | {"bits": 8}
    assert OnnxClassifier(small_file).fields == tuple(FIELDS)
    onnx.checker.check_model(onnx.load(small_file))


def test_images_to_round_for_are_needed(onnx_file, tmp_path):
    with pytest.raises(VividError, match="need images"):
        quantize_onnx(onnx_file, tmp_path / "c.onnx", [])
    assert not list(tmp_path.iterdir())


def test_bad_files_are_told(onnx_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VividError, match="cannot be written"):
        quantize_onnx(onnx_file, tmp_path / "file" / "c.onnx", TRAINING)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_interrupted_it_leaves_nothing(onnx_file, tmp_path, monkeypatch):
    (tmp_path / "c.onnx").write_bytes(b"before")

    def interrupt(*_, **__):
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt

    opened = iter([OnnxClassifier, interrupt])  # the second is the file that was written
    monkeypatch.setattr(module, "OnnxClassifier", lambda path: next(opened)(path))
    with pytest.raises(KeyboardInterrupt):
        quantize_onnx(onnx_file, tmp_path / "c.onnx", TRAINING)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


@pytest.mark.numeric
def test_pytorch_agrees(small_file):
    """Quantised from the ONNX file, held against the classifier that it comes from."""
    images = make_images(32)
    with torch.inference_mode():
        logits = make_classifier()(images).numpy()
    assert np.corrcoef(OnnxClassifier(small_file)(images)[0].ravel(), logits.ravel())[0, 1] > 0.998


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
    images = make_images(11).numpy()
    model = onnx.load(onnx_file)
    weights = {one.name for one in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights][:3]
    got = input_moments(model, iter(images))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(node.input[0]) for node in products)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for node in products:
        (inputs,) = session.run([node.input[0]], {INPUT: images})
        first, others = inputs[:, 0], inputs[:, 1::7].reshape(-1, inputs.shape[2])
        wanted = first.T @ first + others.T @ others * 11 / len(others)
        np.testing.assert_allclose(got[node.input[0]], wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    assert len(got) == 24
