"""SPD's penalty on phantoms: with a weight, the groups' attention maps end up further apart than without."""

import pytest
import torch

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import image_loader
from vivid_monai.data.manifest import Manifest
from vivid_monai.engines.step import PretrainLoss, PretrainStep
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.spd import SPD, Projector
from vivid_monai.networks.teacher.none import StateClassifier
from vivid_monai.networks.vit import ViT
from vivid_monai.prepare.phantoms import prepare

from .test_step import make_engine


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    manifest = Manifest.load(prepare(tmp_path_factory.mktemp("data") / "phantoms", n=60, seed=1, size=32))
    items = manifest.select("train").items(manifest.fields)
    return manifest.fields, image_loader(ImageDataset(items, Preprocess(size=32), cache=True), 8, seed=0)


def overlap_after_training(loader, weight: float) -> float:
    fields, batches = loader
    torch.manual_seed(0)
    encoder = ViT(img_size=32, patch_size=8, preset="micro")
    dim = encoder.embed_dim
    network = Pretrainer(encoder, SPD(dim), Projector(dim, 64), StateClassifier(fields, 64))
    engine = make_engine(network, loss=PretrainLoss(orthogonality=weight))
    engine.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    step = PretrainStep()
    penalties = [step(engine, batch)[0]["penalty"] for _, batch in zip(range(25), batches, strict=False)]
    return sum(penalties[-5:]) / 5


def test_a_weight_on_the_penalty_lowers_the_cosine_between_groups(loader):
    with_penalty, without = overlap_after_training(loader, 0.5), overlap_after_training(loader, 0.0)
    assert with_penalty < without - 0.05
