"""``vivid init``: the configs in a folder of one's own."""

import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

from vivid_monai.cli import main
from vivid_monai.errors import VividError
from vivid_monai.storage import configs

ROOT = Path(__file__).parents[2]
FILES = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*") if path.is_file()}


def test_lays_every_config_and_replaces_none_without_force(tmp_path, capsys):
    assert main(["init", str(tmp_path / "mine")]) == 0
    laid = {str(path.relative_to(tmp_path / "mine")) for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert laid == FILES
    changed = tmp_path / "mine" / "configs" / "train.json"
    changed.write_text("changed")
    assert main(["init", str(tmp_path / "mine")]) == 2
    told = capsys.readouterr().err
    assert "would be replaced; give another folder, or --force" in told
    assert changed.read_text() == "changed"
    assert main(["init", str(tmp_path / "mine"), "--force"]) == 0
    assert changed.read_text() == (ROOT / "configs" / "train.json").read_text()


def test_every_config_is_installed():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    listed = {}
    for target, patterns in table.items():
        for pattern in patterns:
            listed |= {str(path.relative_to(ROOT)): target for path in ROOT.glob(pattern)}
    assert listed == {name: f"share/vivid-monai/{Path(name).parent}" for name in FILES}


def test_an_installed_package_finds_its_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(configs.vivid_monai, "__file__", str(tmp_path / "site" / "vivid_monai" / "__init__.py"))
    info = tmp_path / "site" / "vivid_monai-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vivid-monai\nVersion: 0\n")
    monkeypatch.setattr(configs, "distributions", lambda name: distributions(name=name, path=[str(tmp_path / "site")]))
    with pytest.raises(VividError, match="are not installed with it"):
        configs.packaged_configs()
    (info / "RECORD").write_text("../share/vivid-monai/configs/train.json,,\n")
    (tmp_path / "share" / "vivid-monai" / "configs").mkdir(parents=True)
    (tmp_path / "share" / "vivid-monai" / "configs" / "train.json").write_text("{}")
    assert configs.packaged_configs() == tmp_path / "share" / "vivid-monai" / "configs"


def test_a_command_takes_the_configs_where_it_runs_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.find_configs() == ROOT / "configs"
    assert main(["init", "."]) == 0
    assert configs.find_configs() == Path("configs")
