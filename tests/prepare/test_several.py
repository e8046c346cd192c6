"""The public data sets that docs/data.md trains on together, prepared as it says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import image_loader
from vivid_monai.data.targets import FieldSampler, StatesTarget
from vivid_monai.data.union import load_manifest, shares
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.objectives import FindingsBCE
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.vit import ViT
from vivid_monai.prepare import nih, table
from vivid_monai.prepare.build import prepare
from vivid_monai.ums.label_space import load_label_space

MAPPINGS = Path(__file__).parents[2] / "configs" / "prepare"
KINDS = ["Pneumonia", "Bacterial Pneumonia", "Viral Pneumonia"]


@pytest.mark.real_data
def test_nih_kermany_and_covid_teach_one_network_what_each_can_answer(real_data, tmp_path):
    kermany, covid = real_data / "kermany", real_data / "covid"
    sources = {
        "nih-chestxray14": nih.read(real_data / "nih"),
        "kermany": table.read(kermany / "labels.csv", mapping=MAPPINGS / "kermany.json", image_root=kermany),
        "covid": table.read(covid / "metadata.csv", mapping=MAPPINGS / "covid.json", image_root=covid / "images"),
    }
    files = [prepare(source, check="none").write(tmp_path / name) for name, source in sources.items()]
    whole = load_manifest(files)
    assert whole.fields == (*load_label_space("nih-14").fields, *KINDS[1:], "COVID-19")
    assert not np.intersect1d(whole.select("train").patients(), whole.select("test").patients()).size
    states = {name: whole.states(KINDS)[whole.datasets() == name] for name in sources}
    assert [(len(one), int((one[:, 0] == 1).sum())) for one in states.values()][:2] == [(730, 365), (4977, 3652)]
    assert (states["kermany"][:, 1:] == 1).sum(0).tolist() == [2367, 1285]
    assert (states["covid"][:, 2] == 1).sum() > 400

    of_nih = set(load_label_space("nih-14").fields)
    answers = {"nih-chestxray14": of_nih, "kermany": {*KINDS}, "covid": {*KINDS, "COVID-19"}}
    questions = StatesTarget(FieldSampler(whole.fields, rare=["Pneumonia"]))
    items = whole.select("train").items(columns=["dataset"])
    dataset = ImageDataset(items, Preprocess(size=32), targets=[questions])
    loader = iter(image_loader(dataset, 48, seed=0, shares=shares(whole, "train", [1, 1, 1])))
    torch.manual_seed(0)
    vit = ViT(img_size=32, patch_size=16, preset="micro")
    objective = FindingsBCE(whole.fields, dim=vit.embed_dim, prefix=vit.prefix)
    network = Pretrainer(vit, {"findings": objective})
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    taught: dict[str, set[str]] = {name: set() for name in answers}
    for _ in range(3):
        batch, gradient = next(loader), 0.0
        for name in answers:
            rows = [i for i, one in enumerate(batch["dataset"]) if one == name]
            optimizer.zero_grad()
            part = {key: batch[key][rows] for key in ("image", "states", "asked")}
            network.loss(network(part), network.counts(batch)).backward()
            changed = objective.head.bias.grad != 0
            taught[name] |= {field for field, one in zip(whole.fields, changed, strict=True) if one}
            gradient = gradient + objective.head.weight.grad
        optimizer.zero_grad()
        network.loss(network(batch), network.counts(batch)).backward()
        torch.testing.assert_close(objective.head.weight.grad, gradient, atol=1e-6, rtol=1e-4)
        optimizer.step()
    assert taught == answers, "every field that a data set answers, and no other"
