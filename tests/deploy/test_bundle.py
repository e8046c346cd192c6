"""What is in a bundle, and that it passes what the Model Zoo checks."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from tests.deploy.alone import alone, datalist
from tests.deploy.conftest import NAME
from tests.tolerance import float32
from vivid_monai.cli import main
from vivid_monai.deploy.bundle import build_bundle, module_files
from vivid_monai.errors import VividError
from vivid_monai.storage.files import tracked_by_git


@pytest.fixture
def configs(bundle_folder):
    """The folder of its configs."""
    return bundle_folder / "configs"


def test_holds_what_the_zoo_wants(bundle_folder):
    files = {str(path.relative_to(bundle_folder)) for path in bundle_folder.rglob("*.*") if path.is_file()} | {
        "LICENSE"
    }
    assert files == {
        "LICENSE",
        *(f"configs/{name}.json" for name in ("metadata", "inference", "evaluate", "train", "multi_gpu_train")),
        "configs/inference_trt.json",
        "docs/README.md",
        "docs/data_license.txt",
        "docs/reliability.png",
        "models/assessment.safetensors",
        "models/model.onnx",
        "models/model.pt",
        *(f"scripts/{name}" for name in module_files()),
    }
    assert "Apache License" in (bundle_folder / "LICENSE").read_text()


def test_metadata_says_what_the_zoo_asks_for(configs):
    metadata = json.loads((configs / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    versions = [metadata[f"{one}_version"] for one in ("monai", "pytorch", "numpy")]
    for one in (*versions, *metadata["required_packages_version"].values()):
        assert re.fullmatch(r"\d+(\.\d+)+", one)
    assert metadata["encoder_data_format"]["outputs"]["features"]["num_channels"] == 128


@pytest.mark.real_data
def test_metadata_follows_the_zoos_schema(configs, real_data):
    schema = real_data.parent / "monai" / "meta_schema_20240725.json"
    if not schema.exists():
        pytest.skip(f"no schema at {schema}")
    monai.bundle.verify_metadata(meta_file=str(configs / "metadata.json"), filepath=str(schema))


@pytest.fixture
def own_scripts(bundle_folder, monkeypatch):
    """``scripts`` is the bundle's package, as in a process that runs in its folder, and not this repository's."""

    def forget():
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "scripts"}

    kept = forget()
    monkeypatch.syspath_prepend(bundle_folder)
    yield
    forget()
    sys.modules.update(kept)


@pytest.mark.parametrize("config", ["inference.json", "train.json"])
@pytest.mark.usefixtures("own_scripts")
def test_the_network_fits_the_metadata_and_exports(configs, bundle_folder, tmp_path, config):
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / config)}
    monai.bundle.verify_net_in_out(net_id="network_def", **files, bundle_root=str(bundle_folder))
    weights = str(bundle_folder / "models" / "model.pt")
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "a.ts"),
        ckpt_file=weights,
        **files,
        bundle_root=str(bundle_folder),
    )
    network = monai.bundle.load(NAME, bundle_dir=str(bundle_folder.parent), workflow_type=config.removesuffix(".json"))
    x = torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(torch.jit.load(tmp_path / "a.ts")(x), network.eval()(x))


def test_no_property_is_missing(bundle_folder, finished, tmp_path):
    datalist(finished, tmp_path / "datalist.json")
    told = alone(
        "from monai.bundle import create_workflow\n"
        "for kind, names in (('train', ['train']), ('train', ['train', 'evaluate']), ('infer', ['inference'])):\n"
        "    files = [f'configs/{name}.json' for name in names]\n"
        f"    one = create_workflow(config_file=files, workflow_type=kind, dataset_dir={str(tmp_path)!r})\n"
        "    print('missing', one.check_properties())\n",
        cwd=bundle_folder,
    )
    assert re.findall("missing (.*)", told) == ["[]"] * 3


def test_loads_from_any_folder_with_monai_alone(bundle_folder, finished, tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 1, 16, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    alone(
        f"import sys; sys.path.insert(0, {str(bundle_folder)!r})\n"
        "import monai.bundle, numpy, torch\n"
        f"network = monai.bundle.load({NAME!r}, bundle_dir={str(bundle_folder.parent)!r}).eval()\n"
        "x = torch.from_numpy(numpy.load('x.npy'))\n"
        "numpy.savez('y.npz', y=network(x).detach(), f=network.features(x).detach())\n",
        cwd=tmp_path,
    )
    got = np.load(tmp_path / "y.npz")
    with torch.no_grad():
        np.testing.assert_allclose(
            got["y"],
            finished.classifier(torch.from_numpy(x)),
            rtol=0,
            atol=float32(depth=6, scale=np.abs(got["y"]).max()),
        )
        np.testing.assert_allclose(
            got["f"],
            finished.classifier.features(torch.from_numpy(x)),
            rtol=0,
            atol=float32(depth=6, scale=np.abs(got["f"]).max()),
        )


def test_the_module_is_this_packages_own_code_and_needs_it_not(bundle_folder):
    for name, text in module_files().items():
        assert (bundle_folder / "scripts" / name).read_text() == text
        assert "vivid_monai" not in text, name
    assert "from .raster import MAX_PIXELS" in module_files()["dicom.py"]


def test_is_the_same_when_it_is_built_again(finished, bundle_folder, tmp_path):
    again = build_bundle(finished, tmp_path / NAME, onnx="float32")
    for path in bundle_folder.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert (again / path.relative_to(bundle_folder)).read_bytes() == path.read_bytes(), path.name


def test_the_readme_tells_the_numbers(bundle_folder, finished):
    text = (bundle_folder / "docs" / "README.md").read_text()
    for heading in ("Model Description", "Data", "Performance", "Limitations", "Citation Info", "References"):
        assert f"## **{heading}**" in text
    auroc = finished.results.get("auroc", "Edema", "pretrained")
    assert f"{auroc.value:.3f} ({auroc.low:.3f}–{auroc.high:.3f})" in text
    for one in finished.calibrations:
        assert (f"{one.present_from:.3f}" if one.present_from else one.unanswered) in text
    assert "{{" not in text


def test_a_name_that_monai_label_does_not_understand_is_refused(finished, tmp_path):
    with pytest.raises(VividError, match="must end in _classification"):
        build_bundle(finished, tmp_path / "my_model")
    assert not list(tmp_path.iterdir())


def test_the_training_loss_counts_what_is_known(configs):
    parser = ConfigParser()
    parser.read_config(str(configs / "train.json"))
    loss = parser.get_parsed_content("loss")
    pred = torch.randn(4, 3, requires_grad=True)
    label = torch.tensor([[1, 0, -1], [-1, -1, -1], [0, 1, 1], [1, -1, 0]]).float()
    known = label >= 0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(pred[known], label[known])
    torch.testing.assert_close(loss(pred, label), expected)
    loss(pred, label).backward()
    assert not pred.grad[~known].any()
    assert pred.grad[known].all()
    assert loss(pred, torch.full_like(label, -1)).item() == 0


def test_large_weights_are_listed_for_the_zoo(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("vivid_monai.deploy.bundle.LARGE", 1000)
    wording = {"weights_url": "https://example.org/files/"}
    folder = build_bundle(finished, tmp_path / NAME, onnx="float32", wording=wording)
    entries = {one["path"]: one for one in yaml.safe_load((folder / "large_files.yml").read_text())["large_files"]}
    assert set(entries) == {"models/model.pt", "models/model.onnx", "models/assessment.safetensors"}
    for path, entry in entries.items():
        assert entry["hash_val"] == hashlib.sha256((folder / path).read_bytes()).hexdigest()
        assert entry["url"] == f"https://example.org/files/{Path(path).name}"
    monkeypatch.setattr("vivid_monai.deploy.bundle.LARGE", 10**9)
    assert not (build_bundle(finished, tmp_path / NAME) / "large_files.yml").exists()
    shutil.rmtree(folder)


def test_the_command_builds_it_and_tells_what_is_not_answered(run, tmp_path, capsys):
    out = tmp_path / NAME
    assert main(["bundle", str(run), "--out", str(out), "--accepted", "0.9", "--sensitivity", "0.8"]) == 0
    told = capsys.readouterr().out
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    unanswered = [one["field"] for one in metadata["answers"]["fields"] if one["unanswered"]]
    assert f"{12 - len(unanswered)} of 12 findings are answered" in told
    assert all(f"not answered: {field}" in told for field in unanswered)
    refused = re.search(
        r"training ones ([\d.]+) % are expected to be refused", (out / "docs" / "README.md").read_text()
    )
    assert float(refused[1]) == pytest.approx(10, abs=0.5)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert tracked_by_git(out) == ""
    subprocess.run(["git", "-C", tmp_path, "add", out / "LICENSE"], check=True)
    before = (out / "LICENSE").stat().st_mtime_ns
    assert main(["bundle", str(run), "--out", str(out)]) == 2
    assert f"{out}: git tracks LICENSE there, which would be replaced; give another --out, or --force" in (
        capsys.readouterr().err
    )
    assert (out / "LICENSE").stat().st_mtime_ns == before
    assert main(["bundle", str(tmp_path), "--out", str(out), "--force"]) == 2
    assert "give the folder of a finished training run" in capsys.readouterr().err
