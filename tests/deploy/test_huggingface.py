"""Hugging Face folders: transformers' own classes compute the same."""

import json
import re
import sys
from functools import partial

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from tests.deploy.small import FIELDS, PREPROCESS, SIZE, make_classifier, make_images
from vivid_monai.deploy import export as module
from vivid_monai.deploy.export import export_huggingface
from vivid_monai.deploy.scripts import module_files
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.vit import ViT
from vivid_monai.networks.weights import NAMINGS, load_vit_weights, rename_vit_weights

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("own_modules")]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_eps": 1e-2, "in_channels": 3, "preset": "tiny", "drop_path": 0.5},
        {"pool": "mean"},
        {"pool": "cls+mean", "norm_eps": 1e-2},
        {"pool": "spd"},
        {"pool": "cls+mean", "stem": "conv", "preset": "nano", "norm_eps": 1e-2},
        {"pool": "spd", "stem": "conv", "preset": "nano", "in_channels": 3},
    ],
)
def test_equals_pytorch(options, tmp_path):
    channels = options.get("in_channels", 1)
    ours = make_classifier(**options)
    folder = export_huggingface(
        ours, tmp_path / "new" / "folder", preprocess=Preprocess(size=SIZE, channels=channels), fields=FIELDS
    )
    by_spd, with_stem = options.get("pool") == "spd", "stem" in options
    own = by_spd or with_stem
    load, load_body = (
        partial(auto.from_pretrained, folder, local_files_only=True)
        for auto in (AutoModelForImageClassification, AutoModel)
    )
    theirs = load(trust_remote_code=own).eval()
    body = load_body(trust_remote_code=with_stem).eval()
    images = make_images(3, channels=channels)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images).logits, ours(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(body(images).last_hidden_state, ours.encoder(images), rtol=0, atol=1e-5)
    if with_stem:
        kind = "ConvStemViTForImageClassification"
    else:
        kind = "ViTForImageClassificationBySPD" if by_spd else "ViTForImageClassification"
        kind = "Dinov2ForImageClassification" if options.get("pool") in ("mean", "cls+mean") else kind
    assert type(theirs).__name__ == kind
    assert theirs.config.id2label == dict(enumerate(FIELDS))
    assert theirs.config.label2id == {field: i for i, field in enumerate(FIELDS)}
    loss = theirs(images, labels=torch.full((3, 5), 0.5)).loss
    expected = torch.nn.functional.binary_cross_entropy_with_logits(ours(images), torch.full((3, 5), 0.5))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    assert ("auto_map" in json.loads((folder / "config.json").read_text())) == own
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "processing_vivid.py"}
    files |= {f"{name}.py" for name in ("errors", "modeling_vivid", "pooling", "spd", "stem")} if own else set()
    assert {one.name for one in folder.iterdir()} == files
    if with_stem:
        for refused in (load, load_body):
            with pytest.raises(ValueError, match="trust_remote_code=True"):
                refused(trust_remote_code=False)
    elif by_spd:
        # and never another network under the same name
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            load(trust_remote_code=False)
    assert [one.name for one in folder.parent.iterdir()] == ["folder"]
    assert folder.stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o777


def test_its_code_needs_torch_and_transformers_alone():
    texts = module_files([module.MODELING, module.PROCESSING])
    imported = {
        name: re.findall(r"^(?:from|import) ([.\w]+)", text, flags=re.MULTILINE) for name, text in texts.items()
    }
    direct = {f"{one[1:]}.py" for one in imported["modeling_vivid.py"] if one.startswith(".")}
    expected = {"__init__.py", "modeling_vivid.py", "processing_vivid.py"}
    assert set(texts) == expected | direct  # transformers 5.5 copies no others
    outside = {one.split(".")[0] for names in imported.values() for one in names if not one.startswith(".")}
    assert outside - sys.stdlib_module_names == {"torch", "transformers", "numpy", "PIL"}


def test_a_stem_can_be_trained_on_in_transformers_and_saved(tmp_path):
    """The statistics of its batch norms follow the images there as well, and come back."""
    ours = make_classifier(stem="conv", preset="nano", pool="cls+mean")
    folder = export_huggingface(ours, tmp_path / "folder", preprocess=PREPROCESS, fields=FIELDS)
    theirs = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).train()
    assert torch.equal(theirs.vit.stem[1].running_var, ours.encoder.patch_embedding.patch_embeddings[1].running_var)
    for network in (theirs, ours.train()):
        network(make_images(4))
    assert theirs.vit.stem[1].num_batches_tracked == 8
    theirs.save_pretrained(tmp_path / "again")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(make_images(2)).logits, ours.eval()(make_images(2)), rtol=0, atol=1e-5)


def test_its_encoder_can_be_trained_on(tmp_path):
    ours = make_classifier()
    folder = export_huggingface(ours, tmp_path / "folder", preprocess=PREPROCESS, fields=FIELDS)
    vit = load_vit_weights(ViT(**ours.encoder.config), folder).eval()
    torch.testing.assert_close(vit(make_images(2)), ours.encoder(make_images(2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
def test_renamed_weights_are_read_again(naming, tmp_path):
    from safetensors.torch import save_file

    ours = make_classifier().encoder
    renamed = rename_vit_weights(ours, naming)
    save_file(renamed, tmp_path / "model.safetensors")
    vit = load_vit_weights(ViT(**ours.config), tmp_path / "model.safetensors").eval()
    assert torch.equal(vit(make_images(2)), ours(make_images(2)))


def test_folders_with_files_and_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for folder, message in (
        (tmp_path / "full", "holds files already"),
        (tmp_path / "full" / "notes.txt", "holds files already"),
        (tmp_path / "full" / "notes.txt" / "folder", "cannot be written"),
    ):
        with pytest.raises(VividError, match=message):
            export_huggingface(make_classifier(), folder, preprocess=PREPROCESS, fields=FIELDS)
    assert [one.read_text() for one in tmp_path.rglob("*") if one.is_file()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert export_huggingface(make_classifier(), tmp_path / "empty", preprocess=PREPROCESS, fields=FIELDS).is_dir()


def test_what_differs_is_not_written(tmp_path, monkeypatch):
    def spoil(vit, naming):
        weights = renamed(vit, naming)
        return weights | {"layernorm.bias": weights["layernorm.bias"] + 1e-3}

    renamed = module.rename_vit_weights
    monkeypatch.setattr(module, "rename_vit_weights", spoil)
    with pytest.raises(VividError, match="folder: a batch of 1 differs"):
        export_huggingface(make_classifier(), tmp_path / "folder", preprocess=PREPROCESS, fields=FIELDS)
    assert not list(tmp_path.iterdir())


def test_interrupted_it_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        assert len(list(tmp_path.rglob("*.*"))) >= 4
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_same", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_huggingface(make_classifier(), tmp_path / "folder", preprocess=PREPROCESS, fields=FIELDS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (Preprocess(size=SIZE, slices=3), "slices=3"),
        (Preprocess(size=33, resize="crop", resize_to=40), "size=33"),
        (Preprocess(size=64), "do not belong"),
    ],
)
def test_preprocessing_without_a_processor_is_refused(preprocess, message, tmp_path):
    patch = 11 if preprocess.size == 33 else 8
    size = 33 if preprocess.size == 33 else SIZE
    ours = make_classifier(img_size=size, patch_size=patch, in_channels=3 if preprocess.slices == 3 else 1)
    with pytest.raises(VividError, match=message):
        export_huggingface(ours, tmp_path / "folder", preprocess=preprocess, fields=FIELDS)
    assert not list(tmp_path.iterdir())
