"""A prediction as a DICOM report: Comprehensive SR by TID 1500 (PS3.16), written with highdicom."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from vivid_monai.deploy.codes import PRIVATE_SCHEME, finding_code
from vivid_monai.deploy.sr_source import discreet, read_source
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import library
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.record import Finding, Record

DEVELOPERS = "VIVID-Med developers"

NOTICE = (
    "Computed by an algorithm that is not a medical device, for research only. "
    "Not verified by a person, not for diagnosis or treatment."
)

SERIES_NUMBER = 9001
"""Behind the image series of a study. Numbers need not be unique; the UID of the series is."""

PRESENCE = {"present": codes.SCT.Present, "absent": codes.SCT.Absent, "uncertain": codes.SCT.Undetermined}
"""State → CID 240 Present-Absent-Undetermined. DCM 121053, 121054 and 121059 are retired."""

_QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
_ENGLISH = Code("en", "RFC5646", "English")


@dataclass(frozen=True)
class Algorithm:
    """What made a prediction, as a report names it.

    Attributes:
        name, version: of the model, as its bundle has them.
        fingerprint: of the weights; the same weights are the same observing device in every report.

    Raises:
        VividError: a part that is empty, over 64 characters or has a backslash, so that it is no LO value.
    """

    name: str
    version: str
    fingerprint: str

    def __post_init__(self) -> None:
        for part, value in vars(self).items():
            if not 0 < len(value.strip()) <= len(value) <= 64 or "\\" in value:
                raise VividError(f"algorithm: {part} {value!r} needs 1 to 64 characters and no backslash")


def write_sr(
    record: Record, source: Path, path: Path, *, algorithm: Algorithm, not_assessed: str | None = None
) -> None:
    """Write what a model says of a DICOM image as a DICOM Structured Report of the image's study.

    For each answered field there is a measurement group (TID 1501) with a coded observation, whose name is the finding
    (`finding_code`) and whose value is `PRESENCE`; its probability (DCM 122157, a number in [0, 1], UCUM "1") where
    the record has a score; the algorithm (TID 4019); and the reference to the image. Fields without a state are not
    written, nor are severity, location, boxes and measurements, which no classifier gives. Patient and study are
    copied from the source and are written nowhere else; UIDs of series and instance are new with every call, and text
    is in UTF-8 (ISO_IR 192) whatever it was in the source.

    Args:
        record: its findings and label_space are used, and neither its id nor its paths.
        source: the DICOM image that the record is about.
        path: where the report goes. Name it after nothing that tells who the patient is.
        algorithm: what made the prediction.
        not_assessed: why the image was not assessed; the report says so and holds no finding, whatever the record has.

    Raises:
        VividError: highdicom is not installed, the source is no DICOM image or cannot be referred to, a score outside
            [0, 1], an empty reason, a file that cannot be written. No message has a value of the source in it.
    """
    hd = library("highdicom", '"vivid-monai[dicom-sr]"')
    source, path = Path(source), Path(path)
    if path.resolve() == source.resolve():
        raise VividError(f"{path}: is the image itself; give the report another path")
    if not_assessed is not None and not not_assessed.strip():
        raise VividError("not_assessed: give the reason why the image was not assessed")
    answered = {field: finding for field, finding in record.findings.items() if finding.state is not None}
    if not_assessed is not None:
        answered = {}
    elif not answered:
        not_assessed = "the algorithm answers none of its fields"
    with discreet(source):
        data = _encode(hd, read_source(source), record.label_space, answered, algorithm, not_assessed)
    with whole_file(path) as part:
        part.write_bytes(data)


def _encode(
    hd: ModuleType,
    source: Dataset,
    label_space: str | None,
    answered: dict[str, Finding],
    algorithm: Algorithm,
    reason: str | None,
) -> bytes:
    document = hd.sr.ComprehensiveSR(
        evidence=[source],
        content=_content(hd, source, label_space, answered, algorithm, reason),
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER,
        series_description="Findings of an algorithm, not verified",
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=DEVELOPERS,
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.version,
        device_serial_number=algorithm.fingerprint,
        is_complete=reason is None,
        coding_schemes=[_private_scheme(hd)],
        specific_character_set="ISO_IR 192",
    )
    buffer = BytesIO()
    document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _private_scheme(hd: ModuleType) -> Dataset:
    return hd.coding_schemes.CodingSchemeIdentificationItem(
        PRIVATE_SCHEME, name="Concepts of the label spaces of VIVID-Med", responsible_organization=DEVELOPERS
    )


def _content(
    hd: ModuleType,
    source: Dataset,
    label_space: str | None,
    answered: dict[str, Finding],
    algorithm: Algorithm,
    reason: str | None,
) -> Any:
    """The tree of TID 1500. highdicom's own class of it demands measurements, which the standard does not."""
    sr = hd.sr
    device = sr.ObserverContext(
        codes.DCM.Device,
        sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID.from_uuid(str(uuid5(NAMESPACE_OID, algorithm.fingerprint))),
            name=f"{algorithm.name} {algorithm.version}",
            manufacturer_name=DEVELOPERS,
            model_name=algorithm.name,
            serial_number=algorithm.fingerprint,
        ),
    )
    root = sr.ContainerContentItem(codes.DCM.ImagingMeasurementReport, template_id="1500")
    root.ContentSequence = sr.ContentSequence(
        [
            *sr.LanguageOfContentItemAndDescendants(_ENGLISH),
            *sr.ObservationContext(observer_device_context=device),
            sr.CodeContentItem(
                codes.DCM.ProcedureReported, codes.SCT.ImagingProcedure, sr.RelationshipTypeValues.HAS_CONCEPT_MOD
            ),
            _container(sr, codes.DCM.ImageLibrary, [_container(sr, codes.DCM.ImageLibraryGroup, [_image(sr, source)])]),
        ]
    )
    if answered:
        groups = [_group(sr, source, label_space, field, one, algorithm) for field, one in answered.items()]
        root.ContentSequence.append(_container(sr, codes.DCM.ImagingMeasurements, groups))
    contains = sr.RelationshipTypeValues.CONTAINS
    status = codes.DCM.Succeeded if reason is None else codes.DCM.NotAttempted  # CID 6042
    evaluations = [sr.CodeContentItem(codes.DCM.SummaryOfAnalyses, status, contains)]
    for text in [NOTICE] if reason is None else [f"This image was not assessed: {reason}", NOTICE]:
        evaluations.append(sr.TextContentItem(codes.DCM.Comment, text, contains))
    root.ContentSequence.append(_container(sr, _QUALITATIVE_EVALUATIONS, evaluations))
    return sr.ContentSequence([root], is_root=True)


def _container(sr: ModuleType, name: Code, items: list[Any]) -> Any:
    container = sr.ContainerContentItem(name, relationship_type=sr.RelationshipTypeValues.CONTAINS)
    container.ContentSequence = sr.ContentSequence(items)
    return container


def _image(sr: ModuleType, source: Dataset) -> Any:
    return sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)


def _group(
    sr: ModuleType, source: Dataset, label_space: str | None, field: str, finding: Finding, algorithm: Algorithm
) -> Any:
    """One finding by TID 1501.

    Its concept is the name of the observation and not the value of (121071, DCM, "Finding"), which means something
    found: that would state a finding even where the answer is that it is absent.
    """
    assert finding.state is not None
    name, site = finding_code(field, label_space)
    measurements = []
    if finding.score is not None:
        if not 0 <= finding.score <= 1:
            raise VividError(f"field {field!r}: score {finding.score!r} is no probability")
        measurements = [sr.Measurement(codes.DCM.Probability, float(finding.score), codes.UCUM.NoUnits)]
    return sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(identifier=field),
        algorithm_id=sr.AlgorithmIdentification(
            algorithm.name, algorithm.version, parameters=[f"fingerprint {algorithm.fingerprint}"]
        ),
        finding_sites=[sr.FindingSite(site)] if site else None,
        measurements=measurements,
        qualitative_evaluations=[sr.QualitativeEvaluation(name, PRESENCE[finding.state])],
        source_images=[_image(sr, source)],
    )[0]
