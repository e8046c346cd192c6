"""DICOM images to report on, and what stands in a report."""

from dataclasses import dataclass
from pathlib import Path

import pydicom
from highdicom.sr import srread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from vivid_monai.deploy.sr import Algorithm
from vivid_monai.ums.record import Finding, ImageInfo, Provenance, Record

ALGORITHM = Algorithm("chest_xray_vit", "0.1.0", "0f" * 32)

PATIENT = {
    "PatientName": "Roe^Quentin",
    "PatientID": "QX-4711-0815",
    "PatientBirthDate": "19580317",
    "PatientSex": "M",
    "PatientComments": "moved here from Zwolle",
    "StudyID": "ST20993",
    "AccessionNumber": "ACC31337",
    "StudyDate": "20240229",
    "StudyTime": "131517.25",
    "ReferringPhysicianName": "Grey^Meredith",
    "StudyDescription": "Chest after fall from ladder",
}
"""Whose image it is. Each value stands nowhere else, so that it can be searched for."""


def source(
    path: Path, sop_class: str = DigitalXRayImageStorageForPresentation, *, without: tuple[str, ...] = (), **tags
) -> Path:
    """A DICOM image without pixels, which a report does not look at; ``without`` names attributes that it lacks."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.SeriesNumber, ds.InstanceNumber = 2, 5
    ds.Manufacturer, ds.InstitutionName = "Maker", "St. Elsewhere"
    with pydicom.config.disable_value_validation():
        for name, value in ({"SpecificCharacterSet": "ISO_IR 100"} | PATIENT | tags).items():
            setattr(ds, name, value)
        for name in without:
            delattr(ds, name)
        ds.save_as(path, enforce_file_format=True)
    return path


def record(findings: dict[str, Finding], label_space: str | None = "chexpert-14") -> Record:
    """A prediction."""
    image, made = ImageInfo("somewhere/image.dcm"), Provenance("predictions", "chest_xray_vit", "0.1.0", "model")
    return Record("image", "not-recorded", image, "DX", "chest", None, findings, made, label_space=label_space)


@dataclass(frozen=True)
class Observation:
    """One finding of a report; codes as (value, scheme)."""

    code: tuple[str, str]
    presence: str
    probability: float | None
    site: str | None
    images: tuple[str, ...]
    algorithm: tuple[str, ...]


def observations(path: Path) -> dict[str, Observation]:
    """Every measurement group of a report, by its tracking identifier, as highdicom reads it."""
    found = {}
    for group in srread(path).content.get_image_measurement_groups():
        (evaluation,) = group.get_qualitative_evaluations()
        numbers = group.get_measurements()
        assert len(numbers) <= 1
        for number in numbers:
            assert (number.name, number.unit) == (codes.DCM.Probability, codes.UCUM.NoUnits)
        assert group.tracking_identifier not in found
        found[group.tracking_identifier] = Observation(
            code=(evaluation.name.value, evaluation.name.scheme_designator),
            presence=evaluation.value.meaning,
            probability=numbers[0].value if numbers else None,
            site=group.finding_sites[0].value.value if group.finding_sites else None,
            images=tuple(image.referenced_sop_instance_uid for image in group.source_images),
            algorithm=tuple(
                item.value for item in group[0].ContentSequence if item.name.meaning.startswith("Algorithm ")
            ),
        )
    return found


def statements(path: Path) -> list[str]:
    """The codes and texts of the container Qualitative Evaluations."""
    (container,) = [
        item for item in srread(path).ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "C0034375"
    ]
    return [
        item.TextValue if item.ValueType == "TEXT" else item.ConceptCodeSequence[0].CodeMeaning
        for item in container.ContentSequence
    ]
