"""docs/evidence.md: its table can be run, resumes, and nothing on the page is told that was not measured."""

import json
import sys

import pytest

from tests.bundle.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import write_evidence
from write_evidence import Evidence, main, read_table

from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.prepare.conditions import told_of

BCE = ["objective/findings_bce.json"]
TABLE = {
    "data": {
        "made": {"config": "data/phantom.json"},
        "few": {"of": "made", "labels": 0.05, "hide": ["Cardiomegaly"]},
        "mixed": {"of": "made", "shuffle": True, "seed": "each"},
    },
    "arms": {"shuffled": {"says": "other patients' labels", "configs": BCE, "data": "mixed"}},
    "experiments": {
        "small": {
            "says": "half of them",
            "data": ["few"],
            "arms": ["bce_vit", "shuffled"],
            "answers": ["bce_vit"],
            "seeds": 3,
            "probed_on": "made",
        },
        "real": {"says": "not here", "data": ["hospital"], "arms": ["bce_vit", "shuffled"], "seeds": 2},
    },
    "claims": [
        {"says": "labels teach", "arm": "bce_vit", "against": "shuffled"},
        {"says": "the second", "arm": "shuffled", "against": "untrained"},
    ],
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the configs of the checkout and a small table; the current one."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_experiments_are_run_once_and_the_page_tells_them(checkout, forks, capsys):
    quick = ["--quick", "--table", "table.json", "--seeds", "1"]
    assert main(quick) == 1
    told = capsys.readouterr().out
    assert "real: runs/evidence-quick/data/hospital: no manifest.parquet" in told
    assert "not complete: real" in told
    assert len(forks) == 2 + 1
    small = checkout / "runs" / "evidence-quick"
    page = (small / "evidence.md").read_text()
    stored = json.loads((small / "stored" / "small.json").read_text())
    verdict = next(one for one in stored["report"]["verdicts"] if one["reference"] == "shuffled")
    row = f"| labels teach | small | bce_vit − shuffled | {verdict['value']:+.3f} |"
    assert f"{row} 1 of 3 | {verdict['patients']} | **undecided** |" in page
    assert "|  | real | bce_vit − shuffled | – | 0 of 2 | – | not run |" in page
    assert "| the second | small | shuffled − untrained |" in page
    assert "few: labels=0.5, hide=Cardiomegaly, seed=0, " in page
    own = stored["answers"]["bce_vit"]["rows"][0]
    assert f"| small | bce_vit | its own | {own['auroc']:.3f} |" in page
    assert "| small | bce_vit | Cardiomegaly | 0.500 | chance | +0.000 | 1 / " in page  # an untaught column of zeros
    data = small / "data" / "evidence"
    assert told_of(Manifest.load(data / "mixed-0" / "manifest.parquet")) == "shuffle, seed=0"
    trained = {arm: small / "small" / "images" / arm / "0" / "model.pt" for arm in ("bce_vit", "shuffled")}
    assert trained["shuffled"].read_bytes() != trained["bce_vit"].read_bytes()
    results = json.loads((small / "small" / "evaluation" / "results.json").read_text())
    assert results["run"]["data"]["manifest"].endswith("evidence/made/manifest.parquet")

    forks.clear()
    assert main([*quick, "--only", "small"]) == 0
    assert forks == []
    assert (small / "evidence.md").read_text() == page


def test_runs_ask_for_the_phantoms_that_their_data_rest_on(checkout, monkeypatch):
    """A run that reads generated phantoms refuses a folder with another number of them than it would generate."""
    made = {
        "made": {"config": "data/phantom.json", "set": {"phantom_images": 120}},
        "few": {"of": "made", "noise": 0.1},
    }
    table = {**TABLE, "data": {**TABLE["data"], **made}}
    words: list[str] = []
    monkeypatch.setattr(write_evidence, "vivid", lambda asked: words.extend(asked) or 0)
    assert Evidence(table, store=checkout / "store").run("small", seeds=1) == 0
    assert "phantom_images=120" in words[words.index("--set") :]


def test_what_is_partly_trained_says_so(tmp_path):
    evidence = Evidence(TABLE, store=tmp_path)
    partly = {"data": {}, "trained": {"bce_vit": [0, 1], "shuffled": [0]}, "report": None, "answers": {}}
    (tmp_path / "small.json").write_text(json.dumps(partly))
    evidence.write_page(tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| labels teach | small | bce_vit − shuffled | – | 1 of 3 | – | not run |" in page
    assert "| small | bce_vit | – | – | – | – | not run |" in page
    assert "supported" not in page.partition("## Claims")[2]


def test_a_difference_has_its_interval():
    one = {"value": 0.0312, "low": -0.001, "high": 0.06}
    assert write_evidence._signed(one) == "+0.031 (-0.001 to +0.060)"
    assert write_evidence._signed({"value": None, "low": None, "high": None}) == "–"


def test_what_belongs_to_one_machine_is_not_stored(checkout):
    evidence = Evidence(TABLE, store=checkout / "store", quick=True)
    evidence.make("few")
    evidence.runs.joinpath("small").mkdir(parents=True)
    evidence.runs.joinpath("small", "report.json").write_text(json.dumps({"arms": {"a": "x=/home/me/y"}}))
    with pytest.raises(VividError, match="name /home/me/y"):
        evidence._store("small")
    assert not (checkout / "store" / "small.json").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"data": {"few": {"labels": 0.1}}}, "data 'few' needs 'config', or 'of'"),
        ({"experiments": {"small": {"says": "", "data": []}}}, "experiment 'small' has no arms, seeds"),
        ({"arms": {"odd": {"says": "", "set": {"max_epochs": 4}}}}, "arm 'odd' has set; it takes knobs"),
        ({"claims": [{"says": "x", "arm": "lmm", "against": "untrained"}]}, "no experiment has the arm lmm"),
        ({"claims": [{"says": "x"}]}, "no table of evidence"),
    ],
)
def test_a_table_that_is_wrong_is_one_line(checkout, changed, told):
    (checkout / "table.json").write_text(json.dumps(TABLE | changed))
    with pytest.raises(VividError, match=told):
        main(["--table", "table.json", "--page"])


def test_an_experiment_that_is_none_is_one_line(checkout):
    with pytest.raises(VividError, match="did you mean small"):
        main(["--table", "table.json", "--only", "smal"])


def test_the_page_in_the_repository_is_the_one_that_is_written(tmp_path):
    evidence = Evidence(read_table(write_evidence.TABLE))
    evidence.write_page(tmp_path / "evidence.md")
    assert (tmp_path / "evidence.md").read_text() == write_evidence.PAGE.read_text()


def test_every_arm_and_data_set_of_the_table_is_known():
    table = read_table(write_evidence.TABLE)
    arms = json.loads((ROOT / "configs" / "arms.json").read_text()).keys() | table["arms"].keys()
    for one in table["experiments"].values():
        assert set(one["arms"]) <= arms
        assert {*one["data"]} <= {*table["data"], "kermany", "kermany_kind", "nih", "covid"}
        for config in one.get("configs", ()):
            assert (ROOT / "configs" / config).is_file()
    assert {arm["data"] for arm in table["arms"].values()} <= table["data"].keys()
