"""TorchScript files: the same answers for any batch, and what belongs to them."""

import pytest
import torch
from monai.data.torchscript_utils import load_net_with_metadata

from tests.deploy.formats.small import FIELDS, PREPROCESS, make_classifier, make_images
from vivid_monai.deploy.formats import torchscript as module
from vivid_monai.deploy.formats.torchscript import export_torchscript
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess

GIVEN = {"preprocess": PREPROCESS, "fields": FIELDS}


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
def test_equals_pytorch_for_any_batch_and_keeps_what_belongs_to_it(pool, tmp_path):
    ours = make_classifier(pool=pool, drop_path=0.5).train()
    path = export_torchscript(ours, tmp_path / "new" / "c.ts", **GIVEN)
    assert ours.training
    ours.eval()
    loaded, metadata, _ = load_net_with_metadata(str(path))
    plain = torch.jit.load(path)
    for batch in (1, 3, 8):
        images = make_images(batch)
        for network in (loaded, plain):
            torch.testing.assert_close(network(images), ours(images), rtol=0, atol=1e-6)
    assert metadata["fields"] == FIELDS
    assert Preprocess.from_dict(metadata["preprocess"]) == PREPROCESS
    assert [file.name for file in path.parent.iterdir()] == ["c.ts"]


def test_a_file_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    other = make_classifier(seed=5)
    monkeypatch.setattr(module, "load_net_with_metadata", lambda path: (other, {}, {}))
    with pytest.raises(VividError, match=r"c\.ts: a batch of 1 differs"):
        export_torchscript(make_classifier(), tmp_path / "c.ts", **GIVEN)
    assert not list(tmp_path.iterdir())


def test_interrupted_it_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_same", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_torchscript(make_classifier(), tmp_path / "c.ts", **GIVEN)
    assert not list(tmp_path.iterdir())


def test_bad_targets_and_what_does_not_belong_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VividError, match="cannot be written"):
        export_torchscript(make_classifier(), tmp_path / "file" / "c.ts", **GIVEN)
    with pytest.raises(VividError, match="do not belong"):
        export_torchscript(make_classifier(), tmp_path / "c.ts", preprocess=Preprocess(size=64), fields=FIELDS)
