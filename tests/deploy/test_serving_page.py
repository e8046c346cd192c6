"""docs/serving.md: its code runs, its configuration fits the network, its Dockerfile names what exists."""

import ast
import inspect
import json
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from tests.deploy.alone import alone
from tests.deploy.made_dicom import dicom
from vivid_monai.cli import COMMANDS, build_parser, main
from vivid_monai.deploy.predict import predict
from vivid_monai.prepare.phantoms import prepare

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bundle" / "chest_phantom_vit_classification"
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "scripts" / "Dockerfile").read_text(encoding="utf-8")
RECIPE, DEPLOY, TRITON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def session():
    return onnxruntime.InferenceSession(FOLDER / "models" / "model.onnx")


def test_the_page_is_short():
    assert len(PAGE.split()) <= 900


def test_onnx_runtime_alone_answers_as_predict_does(tmp_path):
    folder = tmp_path / "images"
    prepare(tmp_path / "made", n=12, seed=98, size=112)
    pngs = sorted((tmp_path / "made").rglob("*.png"))
    folder.mkdir()
    for i, png in enumerate(pngs):
        png.rename(folder / f"{i:02d}.png")
    with Image.open(folder / "00.png") as image:
        pixels = np.asarray(image)
    dicom(folder / "x.dcm", pixels=pixels, inverted=True)
    dicom(folder / "y.dcm", pixels=pixels, Modality="US")
    Image.new("L", (60, 40), 128).save(folder / "z.png")
    (folder / "zz.txt").write_text("no image")
    code = RECIPE.replace('"IMAGES"', repr(str(folder)))
    assert code != RECIPE
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    said = alone(code, cwd=ROOT).splitlines()
    assert main(["predict", str(folder), "--bundle", str(FOLDER), "--out", str(tmp_path), "--batch-size", "1"]) == 0
    records = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(records) >= 12
    assert [line for line in said if line.startswith("{")] == records
    others = dict(line.split(" not answered: ") for line in said if " not answered: " in line)
    assert {Path(path).name for path in others} >= {"y.dcm", "z.png", "zz.txt"}
    assert len(others) + len(records) == len(list(folder.iterdir()))
    assert others[str(folder / "z.png")].startswith("unlike the images")


def test_the_configuration_of_triton_is_that_of_the_network(session):
    (text,) = re.findall(r"```protobuf\n(.*?)```", PAGE, flags=re.DOTALL)
    assert f'name: "{FOLDER.name}"' in text
    assert int(re.search(r"max_batch_size: (\d+)", text)[1]) > 1  # the first axis, which dims leave out
    told = {}
    for way, several in re.findall(r"^(input|output) \[(.*?)\n?\]$", text, flags=re.DOTALL | re.MULTILINE):
        for name, kind, dims in re.findall(r'name: "(\w+)", data_type: TYPE_(\w+), dims: \[([\d, ]+)\]', several):
            told[way, name] = kind, [int(one) for one in dims.split(",")]
    kinds = {"tensor(float)": "FP32"}
    real = {("input", one.name): (kinds[one.type], one.shape) for one in session.get_inputs()}
    real |= {("output", one.name): (kinds[one.type], one.shape) for one in session.get_outputs()}
    assert all(isinstance(shape[0], str) for _, shape in real.values())  # any batch
    assert told == {name: (kind, shape[1:]) for name, (kind, shape) in real.items()}


def test_a_request_to_triton_takes_the_place_of_the_session(session):
    class InferInput:
        def __init__(self, name, shape, kind):
            self.name, self.shape, self.kind = name, shape, kind

        def set_data_from_numpy(self, pixels):
            assert (list(pixels.shape), pixels.dtype, self.kind) == (self.shape, np.float32, "FP32")
            self.pixels = pixels

    def infer(model, inputs):
        assert model == FOLDER.name
        outputs = session.run(None, {one.name: one.pixels for one in inputs})
        names = [one.name for one in session.get_outputs()]
        return SimpleNamespace(as_numpy=dict(zip(names, outputs, strict=True)).__getitem__)

    client = SimpleNamespace(infer=infer)
    names = {
        "torch": torch,
        "client": client,
        "tritonclient": SimpleNamespace(http=SimpleNamespace(InferInput=InferInput)),
    }
    exec(compile(TRITON, "docs/serving.md", "exec"), names)
    pixels = torch.rand(2, 1, 112, 112)
    np.testing.assert_array_equal(names["run"](pixels), session.run(["pred"], {"image": pixels.numpy()})[0])


def test_what_monai_deploy_is_to_call_exists():
    for node in ast.walk(ast.parse(DEPLOY)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("vivid_monai"):
            assert all(hasattr(import_module(node.module), one.name) for one in node.names)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "predict":
            inspect.signature(predict).bind(*node.args, **{one.arg: one.value for one in node.keywords})


def test_the_dockerfile_names_what_exists():
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    words = {
        name: [line.split(maxsplit=1)[1] for line in lines if line.startswith(f"{name} ")]
        for name in ("FROM", "COPY", "RUN", "ARG", "EXPOSE", "CMD", "HEALTHCHECK", "ENV")
    }
    assert all(line.split()[0] in {*words, "WORKDIR", "USER"} for line in lines)
    bundle = next(one.partition("=")[2] for one in words["ARG"] if one.startswith("BUNDLE="))
    copied = [source for one in words["COPY"] for source in one.replace("${BUNDLE}", bundle).split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    assert (ROOT / bundle / "configs" / "metadata.json").is_file()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (install,) = words["RUN"]
    assert re.search(r'-c (\S+) "\.\[(\w+)\]"$', install).groups() == ("constraints.txt", "service")
    assert "service" in project["optional-dependencies"]
    assert {"pyproject.toml", project["readme"], *project["license-files"], "constraints.txt", "vivid_monai"} <= {
        *copied
    }
    python = re.match(r"python:(3\.\d+)-slim$", words["FROM"][0])[1]
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]

    run, program, *arguments = shlex.split(words["CMD"][0])
    assert (run, program) == ("exec", "vivid")
    assert program in project["scripts"]
    assert arguments[0] in COMMANDS
    args = build_parser(arguments[0]).parse_args(arguments)
    assert (args.host, [str(args.port)]) == ("0.0.0.0", words["EXPOSE"])
    assert str(args.bundle) == "$BUNDLE"
    assert words["ENV"][0].startswith("BUNDLE=/srv/${BUNDLE} ")
    health = json.loads(words["HEALTHCHECK"][0].partition(" CMD ")[2])
    assert f"http://127.0.0.1:{args.port}/health" in health[-1]
    ast.parse(health[-1])
