"""Who may be answered, by the tags of a DICOM file."""

from pathlib import Path

import pytest
from pydicom import Dataset

from tests.deploy.made_dicom import dicom
from tests.deploy.mutate import mutations
from vivid_monai.deploy.eligibility import check_accept, judge
from vivid_monai.errors import VividError

CHEST = {"modality": ["DX"], "anatomy": ["chest"], "view": ["AP", "PA"]}


def objection(path: str, known) -> str | None:
    return judge(path, known)[0]


def coded(value: str, scheme: str = "SCT", meaning: str = "", modifiers: list[Dataset] | None = None) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    if modifiers:
        item.ViewModifierCodeSequence = modifiers
    return item


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({}, None),
        ({"ViewPosition": "PA"}, None),
        ({"ViewPosition": "AP", "BodyPartExamined": "Chest"}, None),
        ({"ViewPosition": "LLD"}, None),
        ({"ViewPosition": "LAT DECUB"}, None),
        ({"ViewPosition": "", "PatientOrientation": ["L", "F"]}, None),
        ({"ViewPosition": "PA", "PatientOrientation": ["A", "F"]}, None),
        ({"ViewPosition": "LL"}, "lateral"),
        ({"ViewPosition": "LATERAL"}, "lateral"),
        ({"ViewPosition": "SEITLICH"}, "lateral"),
        ({"PatientOrientation": ["A", "F"]}, "lateral"),
        ({"PatientOrientation": ["PH", "F"]}, "lateral"),
        *(({"ViewPosition": word}, "oblique") for word in ("RLO", "OBL", "RAO", "LPO", "LORDOTIC", "AP LORDOTIC")),
        ({"ViewCodeSequence": [coded("399067008")]}, "lateral"),
        ({"ViewCodeSequence": [coded("R-10236", "SRT", "left lateral")]}, "lateral"),
        ({"ViewCodeSequence": [coded("R-10206", "SRT")]}, None),
        ({"ViewCodeSequence": [coded("399135007")]}, "oblique"),
        ({"ViewCodeSequence": [coded("12", "99LOCAL", "Thorax seitlich")]}, "lateral"),
        ({"ViewCodeSequence": [coded("399348003", modifiers=[coded("399182000")])]}, "oblique"),
        ({"ViewPosition": "AP", "ViewCodeSequence": [coded("399067008")]}, "lateral"),
        ({"SeriesDescription": "CHEST LATERAL"}, "lateral"),
        ({"SeriesDescription": "Chest PA and lateral"}, None),
        ({"SeriesDescription": "CHEST LATERAL", "ViewPosition": "PA"}, None),
        ({"SeriesDescription": "LL PNEUMONIA?"}, None),
        ({"SeriesDescription": "KNEE AP"}, "description names another part"),
        ({"SeriesDescription": "CHEST AND ABDOMEN"}, None),
        ({"Modality": "CT"}, "modality is CT"),
        ({"Modality": "CR", "BodyPartExamined": "ABDOMEN"}, "not of the chest"),
        ({"Modality": "US"}, "modality is US"),
        *(({"Modality": word}, None) for word in ("DR", "RG", "XR", "X-RAY", ["CR", "DX"], "cr", "OT", "")),
        ({"Modality": ["CR", "CT"]}, "modality is another"),
        ({"Modality": "", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "modality is CT"),
        ({"NumberOfFrames": 4}, "4 frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        *(
            ({"BodyPartExamined": word}, None)
            for word in (
                "THORAX",
                "BRUST",
                "TORAX",
                "TÓRAX",
                "POITRINE",
                "LUNGE",
                "PULMÓN",
                "胸部".encode().decode("latin-1"),
                "UNKNOWN",
                "CHEST^1",
            )
        ),
        ({"BodyPartExamined": "KNIE"}, "not of the chest"),
        ({"AnatomicRegionSequence": [coded("72696002", meaning="Knee")]}, "AnatomicRegionSequence names another part"),
        ({"AnatomicRegionSequence": [coded("T-D3000", "SRT")]}, None),
        ({"AnatomicRegionSequence": [coded("816094009")]}, None),
        ({"AnatomicRegionSequence": [coded("7", "99LOCAL", "Thorax pa")]}, None),
        ({"BodyPartExamined": "CHEST", "AnatomicRegionSequence": [coded("T-D9200")]}, "names another part"),
        ({"QualityControlImage": "YES"}, "quality control"),
        ({"QualityControlImage": "NO", "PresentationIntentType": "FOR PRESENTATION"}, None),
        ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING"),
        ({"PatientOrientation": ["R", "F"]}, "mirrored, by its tag PatientOrientation"),
        ({"ViewPosition": "AP", "PatientOrientation": ["L", "H"]}, "turned"),
        ({"PatientOrientation": ["F", "R"]}, "turned"),
        ({"FieldOfViewHorizontalFlip": "YES"}, "mirrored, by its tag FieldOfViewHorizontalFlip"),
        ({"FieldOfViewHorizontalFlip": "YES", "PatientOrientation": ["L", "F"]}, None),
        ({"FieldOfViewRotation": "90"}, "turned"),
        ({"FieldOfViewRotation": "0", "FieldOfViewHorizontalFlip": "NO"}, None),
    ],
)
def test_tags_speak_against_what_was_not_trained_on(tmp_path, tags, told):
    said = objection(dicom(tmp_path / "a.dcm", **tags), CHEST)
    assert said is None if told is None else told in said
    assert "\n" not in (said or "")
    assert len(said or "") < 150


def test_laterals_are_answered_by_a_model_that_knows_them(tmp_path):
    path = dicom(tmp_path / "a.dcm", ViewPosition="LL", PatientOrientation=["P", "F"])
    assert objection(path, CHEST | {"view": ["PA", "lateral"]}) is None
    assert "lateral" in objection(path, CHEST | {"view": []})


def test_other_anatomies_and_modalities_have_their_own_tags(tmp_path):
    hands = {"modality": ["CR"], "anatomy": ["hand"], "view": []}
    hand = dicom(tmp_path / "hand.dcm", BodyPartExamined="HAND", ViewPosition="RLO")
    chest = dicom(tmp_path / "chest.dcm", BodyPartExamined="CHEST")
    slice_ = dicom(
        tmp_path / "ct.dcm",
        Modality="CT",
        BodyPartExamined="CHEST",
        SeriesDescription="LUNG AXIAL",
        PatientOrientation=["L", "P"],
    )
    assert objection(hand, hands) is None
    assert "not of the hand" in objection(chest, hands)
    assert "not of the chest" in objection(hand, CHEST)
    assert objection(slice_, {"modality": ["CT"], "anatomy": ["lung"], "view": ["axial"]}) is None
    assert "not CT: its modality is DX" in objection(chest, {"modality": ["CT"], "anatomy": ["lung"], "view": []})
    assert objection(hand, {"modality": ["DX"], "anatomy": ["other"], "view": []}) is None
    assert objection(chest, {"modality": ["DX"], "anatomy": ["chest", "hand"], "view": ["oblique"]}) is None


def test_no_free_text_of_a_tag_is_repeated(tmp_path):
    for tag in ("Modality", "BodyPartExamined", "ViewPosition", "SeriesDescription"):
        path = dicom(tmp_path / f"{tag}.dcm", **{tag: "DOE JANE LATERAL KNEE"})
        assert "DOE" not in objection(path, CHEST)


def test_what_is_no_dicom_has_no_tags(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG and so on")
    assert objection(str(tmp_path / "a.png"), CHEST) is None


def test_damaged_tags_say_nothing(tmp_path):
    whole = dicom(
        tmp_path / "a.dcm",
        ViewPosition="PA",
        ViewCodeSequence=[coded("399348003", modifiers=[coded("399067008")])],
        AnatomicRegionSequence=[coded("T-D3000", "SRT")],
        PatientOrientation=["L", "F"],
    )
    content, damaged = Path(whole).read_bytes(), tmp_path / "b.dcm"
    pixels = content.index(b"\xe0\x7f\x10\x00")
    changed = {b"UI": b"UA", b"CS": b"US", b"SQ": b"LO", b"SH": b"??"}
    for kind, other in changed.items():
        damaged.write_bytes(content[:132] + content[132:].replace(kind, other))
        judge(str(damaged), CHEST)
    for header in mutations(content[132:pixels], 100, seed=0):
        damaged.write_bytes(content[:132] + header + content[pixels:])
        judge(str(damaged), CHEST)


def test_one_damaged_tag_hides_no_other(tmp_path):
    path = Path(dicom(tmp_path / "a.dcm", NumberOfFrames="1", PatientOrientation=["R", "F"]))
    path.write_bytes(path.read_bytes().replace(b"IS\x02\x001 ", b"IS\x02\x00x "))
    assert "mirrored" in objection(str(path), CHEST)


def test_overrides_let_through_what_they_name_and_say_so(tmp_path):
    path = dicom(tmp_path / "a.dcm", Modality="US", ViewPosition="LL", NumberOfFrames=1)
    assert judge(path, CHEST, ["modality=US"]) == (
        "a lateral view, which the model was not trained on (--accept view)",
        ["modality"],
    )
    assert judge(path, CHEST, ["modality", "view"]) == (None, ["modality", "view"])
    assert "modality is US" in judge(path, CHEST, ["modality=CT"])[0]
    assert judge(dicom(tmp_path / "b.dcm"), CHEST, ["modality"]) == (None, [])


def test_an_unknown_override_is_refused():
    assert check_accept(["view", "modality=us", "view"]) == ("modality=US", "view")
    with pytest.raises(VividError, match="did you mean modality"):
        check_accept(["modalty"])
