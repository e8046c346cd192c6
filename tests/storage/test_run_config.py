"""What may change when a run goes on."""

import json

import pytest

from vivid_monai.errors import VividError
from vivid_monai.storage import run_config
from vivid_monai.storage.run_config import resume_config, running_config

CONFIG = {"learning_rate": 0.1, "rotate": 0.0, "num_workers": 0, "train": {"trainer": {"max_epochs": "@max_epochs"}}}


@pytest.fixture
def resume(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    def go(**changes):
        monkeypatch.setattr(run_config, "running_config", lambda: {**CONFIG, **changes})
        resume_config(tmp_path)
        return json.loads((tmp_path / "config.json").read_text())

    return go


def test_what_changes_nothing_of_the_network_is_applied_and_recorded(resume):
    assert resume(num_workers=2, resume=True, evaluation={"n": 3})["num_workers"] == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learning_rate": 0.2}, "learning_rate was 0.1, is 0.2"),
        ({"rotate": 20, "learning_rate": 0.2}, "learning_rate was 0.1, is 0.2; rotate was 0.0, is 20"),
        ({"train": {"trainer": {"max_epochs": 2}}}, "train#trainer#max_epochs was '@max_epochs', is 2"),
        ({"new": "x" * 500}, "new was None, is 'xxx"),
    ],
)
def test_what_changes_the_network_is_refused_by_name(resume, tmp_path, changes, told):
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(VividError) as error:
        resume(**changes)
    assert str(error.value).startswith(f"cannot resume: {told}")
    assert f"--config_file {tmp_path / 'config.json'}" in str(error.value)
    assert (tmp_path / "config.json").read_text() == before


def test_outside_of_a_workflow_there_is_no_config(tmp_path):
    assert running_config() == {}
    resume_config(tmp_path)
    assert not list(tmp_path.iterdir())
