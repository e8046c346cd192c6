"""The repository root is a MONAI bundle."""

import json

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigWorkflow
from safetensors.torch import save_file

from tests.bundle.conftest import ROOT, SMALL
from tests.tolerance import close
from vivid_monai.errors import find_cause
from vivid_monai.networks.vit import ViT
from vivid_monai.networks.weights import TIMM, rename_vit_weights
from vivid_monai.ums.label_space import load_label_space

METADATA = json.loads((ROOT / "configs" / "metadata.json").read_text())


@pytest.mark.parametrize("teacher", ["tiny", "none"])
def test_every_property_is_there(tmp_path, phantoms, teacher):
    workflow = ConfigWorkflow(
        [str(ROOT / "configs" / "train.json"), str(ROOT / "configs" / "teacher" / f"{teacher}.json")],
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        **SMALL,
        dataset_dir=str(phantoms),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.real_data
def test_metadata_follows_the_zoos_schema(real_data):
    schema = real_data.parent / "monai" / "meta_schema_20240725.json"
    if not schema.exists():
        pytest.skip(f"no schema at {schema}")
    monai.bundle.verify_metadata(meta_file=str(ROOT / "configs" / "metadata.json"), filepath=str(schema))


def test_network_fits_the_metadata():
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(ROOT / "configs" / "metadata.json"),
        config_file=str(ROOT / "configs" / "train.json"),
    )
    names = list(METADATA["network_data_format"]["outputs"]["pred"]["channel_def"].values())
    assert tuple(names) == load_label_space("chexpert-12").fields


def test_loads_from_another_folder_without_data_or_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vivid").symlink_to(ROOT)
    (tmp_path / "model.pt").write_bytes(b"")
    config = monai.bundle.ConfigParser()
    config.read_config(str(ROOT / "configs" / "train.json"))
    network = config.get_parsed_content("network_def")
    assert network(torch.zeros(1, 1, 112, 112)).shape == (1, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "vivid"]


class Stays(torch.nn.Sequential):
    """One that needs no GPU to be put on it."""

    def to(self, *_):
        return self


@pytest.mark.parametrize(("folder", "name"), [("configs", "pretrainer"), ("vivid_monai/deploy/configs", "network_def")])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_processes_on_gpus_share_the_statistics_of_a_batch_norm(folder, name, device):
    overlay = json.loads((ROOT / folder / "multi_gpu_train.json").read_text())
    network = Stays(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
    parameters = list(network.parameters())
    config = monai.bundle.ConfigParser({name: network, "device": torch.device(device), "network": overlay["network"]})
    assert config.get_parsed_content("network#module") is network
    assert isinstance(network[0][0], torch.nn.SyncBatchNorm) == (device == "cuda")
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))


def test_the_recipe_from_weights_starts_from_them_and_moves_the_first_layers_least(tmp_path):
    torch.manual_seed(1)
    start = ViT(img_size=32, in_channels=3, preset="micro")
    save_file(rename_vit_weights(start, TIMM), tmp_path / "timm.safetensors")
    config = monai.bundle.ConfigParser()
    config.read_config([str(ROOT / "configs" / name) for name in ("train.json", "recipe/from_weights.json")])
    config.update({"vit": "micro", "image_size": 32})
    with pytest.raises(RuntimeError) as error:
        config.get_parsed_content("run#1")
    assert "start.safetensors: no such file" in str(find_cause(error.value))
    colour = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    config.update({"vit_weights": str(tmp_path / "timm.safetensors"), "vit_weights_stats": colour})
    config.parse(True)
    config.get_parsed_content("run#1")
    encoder = config.get_parsed_content("network_def").encoder.eval()
    preprocess = config.get_parsed_content("preprocess")
    grey = torch.rand(2, 1, 32, 32)
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in colour)
    given = (grey - preprocess.mean[0]) / preprocess.std[0]
    torch.testing.assert_close(encoder(given), start.eval()((grey - mean) / std), **close(depth=16))
    rates = [group["lr"] for group in config.get_parsed_content("train#optimizer").param_groups]
    assert min(rates[:-1]) == pytest.approx(config["learning_rate"] * config["layer_decay"] ** 7)


def test_paper_recipe_has_the_papers_values():
    recipe = json.loads((ROOT / "configs" / "recipe" / "paper.json").read_text())
    assert recipe["batch_size"] == 32 == recipe["micro_batch_size"] * 8
    assert recipe["max_epochs"] * recipe["epoch_length"] == 10_000
    assert (recipe["learning_rate"], recipe["projector_learning_rate"], recipe["weight_decay"]) == (2e-5, 1e-4, 0.01)
    assert set(recipe) - {"_desc_"} <= set(json.loads((ROOT / "configs" / "train.json").read_text()))
