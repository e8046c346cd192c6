"""DICOM reports of predictions: Comprehensive SR by TID 1500 (PS3.16), written with highdicom."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydicom import Dataset, dcmread
from pydicom.config import RAISE, disable_value_validation
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID
from pydicom.valuerep import STR_VR, validate_value

from vivid_monai.errors import VividError
from vivid_monai.logs import quiet
from vivid_monai.networks.library import import_library
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.label_space import available_label_spaces, load_label_space
from vivid_monai.ums.record import Finding, Record

DEVELOPERS = "VIVID-Med developers"
NOTICE = (
    "Computed by an algorithm that is not a medical device, for research only. "
    "Not verified by a person, not for diagnosis or treatment."
)
SERIES_NUMBER = 9001  # behind the image series of a study; numbers need not be unique, the UID of the series is
PRESENCE = {"present": codes.SCT.Present, "absent": codes.SCT.Absent, "uncertain": codes.SCT.Undetermined}
"""State → CID 240 Present-Absent-Undetermined. DCM 121053, 121054 and 121059 are retired."""
_QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
_ENGLISH = Code("en", "RFC5646", "English")
PRIVATE_SCHEME = "99VIVID"
"""Designator of the codes that are only ours: 99 marks a private coding scheme (PS3.16, section 8.2)."""
LONG = 64  # characters of a value with VR LO, such as a code meaning

REFERENCE = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
"""What a report needs to point at an image (type 1)."""
KNOWN_BY = ("PatientName", "PatientID", "StudyID", "AccessionNumber", "ReferringPhysicianName")
"""Text by which people and archives know a patient and a study; where it cannot be read there is no report."""
TYPE_2 = (*KNOWN_BY, "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
"""What the modules Patient and General Study must have and may leave empty (PS3.3, C.7.1.1 and C.7.2.1)."""
PARSED = {"AS", "CS", "DA", "DS", "DT", "IS", "TM"}
"""Value representations that programs compute with."""
UNDECODED = "\ufffd"  # what pydicom puts in the place of bytes that are not of the stated character set


@dataclass(frozen=True)
class Algorithm:
    """What made a prediction, as a report names it: name and version of the model, fingerprint of its weights.

    The same weights are the same observing device in every report. A VividError tells of a part that is no LO value.
    """

    name: str
    version: str
    fingerprint: str

    def __post_init__(self) -> None:
        for part, value in vars(self).items():
            if not 0 < len(value.strip()) <= len(value) <= LONG or "\\" in value:
                raise VividError(f"algorithm: {part} {value!r} needs 1 to {LONG} characters and no backslash")


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
        not_assessed: why the image was not assessed; the report says so and holds no finding, whatever the record has.

    Raises:
        VividError: highdicom is not installed, the source is no DICOM image or cannot be referred to, a file that
            cannot be written. No message has a value of the source in it.
    """
    hd = import_library("highdicom", '"vivid-monai[dicom-sr]"')
    if path.resolve() == source.resolve():
        raise VividError(f"{path}: is the image itself; give the report another path")
    answered = {} if not_assessed else {field: one for field, one in record.findings.items() if one.state is not None}
    reason = None if answered else not_assessed or "the algorithm answers none of its fields"
    buffer = BytesIO()
    with discreet(source):
        image = read_source(source)
        scheme = hd.coding_schemes.CodingSchemeIdentificationItem(
            PRIVATE_SCHEME, name="Concepts of the label spaces of VIVID-Med", responsible_organization=DEVELOPERS
        )
        document = hd.sr.ComprehensiveSR(
            evidence=[image],
            content=_content(hd, image, record.label_space, answered, algorithm, reason),
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
            coding_schemes=[scheme],
            specific_character_set="ISO_IR 192",
        )
        document.save_as(buffer, enforce_file_format=True)
    with whole_file(path) as part:
        part.write_bytes(buffer.getvalue())


def _content(
    hd: ModuleType,
    source: Dataset,
    label_space: str | None,
    answered: Mapping[str, Finding],
    algorithm: Algorithm,
    reason: str | None,
) -> Any:
    """The tree of TID 1500. highdicom's own class of it demands measurements, which the standard does not."""
    sr = hd.sr
    contains = sr.RelationshipTypeValues.CONTAINS
    image = sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)

    def container(name: Code, items: list[Any]) -> Any:
        one = sr.ContainerContentItem(name, relationship_type=contains)
        one.ContentSequence = sr.ContentSequence(items)
        return one

    def group(field: str, finding: Finding) -> Any:
        """One finding by TID 1501.

        Its concept is the name of the observation and not the value of (121071, DCM, "Finding"), which means something
        found: that would state a finding even where the answer is that it is absent.
        """
        assert finding.state is not None
        name, site = finding_code(field, label_space)
        score = finding.score
        scores = [] if score is None else [sr.Measurement(codes.DCM.Probability, float(score), codes.UCUM.NoUnits)]
        return sr.MeasurementsAndQualitativeEvaluations(
            sr.TrackingIdentifier(identifier=field),
            algorithm_id=sr.AlgorithmIdentification(
                algorithm.name, algorithm.version, parameters=[f"fingerprint {algorithm.fingerprint}"]
            ),
            finding_sites=[sr.FindingSite(site)] if site else None,
            measurements=scores,
            qualitative_evaluations=[sr.QualitativeEvaluation(name, PRESENCE[finding.state])],
            source_images=[image],
        )[0]

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID.from_uuid(str(uuid5(NAMESPACE_OID, algorithm.fingerprint))),
        name=f"{algorithm.name} {algorithm.version}",
        manufacturer_name=DEVELOPERS,
        model_name=algorithm.name,
        serial_number=algorithm.fingerprint,
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    modifies = sr.RelationshipTypeValues.HAS_CONCEPT_MOD
    status = codes.DCM.Succeeded if reason is None else codes.DCM.NotAttempted  # CID 6042
    texts = [NOTICE] if reason is None else [f"This image was not assessed: {reason}", NOTICE]
    items = [
        *sr.LanguageOfContentItemAndDescendants(_ENGLISH),
        *sr.ObservationContext(observer_device_context=observer),
        sr.CodeContentItem(codes.DCM.ProcedureReported, codes.SCT.ImagingProcedure, modifies),
        container(codes.DCM.ImageLibrary, [container(codes.DCM.ImageLibraryGroup, [image])]),
    ]
    if answered:
        items.append(container(codes.DCM.ImagingMeasurements, [group(*one) for one in answered.items()]))
    evaluations = [sr.CodeContentItem(codes.DCM.SummaryOfAnalyses, status, contains)]
    evaluations += [sr.TextContentItem(codes.DCM.Comment, text, contains) for text in texts]
    items.append(container(_QUALITATIVE_EVALUATIONS, evaluations))
    root = sr.ContainerContentItem(codes.DCM.ImagingMeasurementReport, template_id="1500")
    root.ContentSequence = sr.ContentSequence(items)
    return sr.ContentSequence([root], is_root=True)


def finding_code(field: str, label_space: str | None) -> tuple[Code, Code | None]:
    """The code of a field, and the code of its finding site where the concept alone does not say it.

    A concept of ``finding_codes.json`` has its code of SNOMED CT or DICOM. Any other has a private one, whose value is
    the concept of the label space, or the field's name where the label space is none of the package's.

    Raises:
        VividError: a private code would be no code of DICOM: a name over 64 characters or with a backslash.
    """
    known = load_label_space(label_space) if label_space in available_label_spaces() else None
    concept = known.concepts.get(field, field) if known else field
    table = _table()
    if known and (entry := table["concepts"].get(concept)):
        return _code(entry), _code(table["sites"][entry["site"]]) if "site" in entry else None
    if len(field) > LONG or "\\" in field:
        raise VividError(
            f"field {field!r} cannot be a code meaning of DICOM: "
            f"give it at most {LONG} characters and no backslash in its label space"
        )
    return Code(concept, PRIVATE_SCHEME, field), None


@cache
def _table() -> dict[str, Any]:
    return json.loads((resources.files("vivid_monai.deploy") / "finding_codes.json").read_text("utf-8"))


def _code(entry: Mapping[str, str]) -> Code:
    return Code(entry["value"], entry["scheme"], entry["meaning"])


@contextmanager
def discreet(source: Path) -> Iterator[None]:
    """Keep values of the source out of logs, warnings and messages.

    highdicom logs instance UIDs and warns with names, pydicom's warnings and the exceptions of both quote values. Of
    an exception, which becomes a VividError, only the type is told. Logging, warnings and pydicom's checks are off in
    the whole process meanwhile.
    """
    try:
        with disable_value_validation(), quiet():
            yield
    except VividError:
        raise
    except Exception as error:
        raise VividError(
            f"{source}: no report can be made for this file ({type(error).__name__}); what it holds of the patient "
            "could stand in the full message, which is therefore not shown"
        ) from None


def read_source(path: Path) -> Dataset:
    """Read what a report takes over from an image. Call it, and use its result, inside of `discreet`.

    Attributes of type 2 that the file lacks are there and empty. What no program could read in the report is left out:
    dates, times, numbers and codes that break the rules of their value representation, and text that is not in the
    character set that the file states. Other text stands as it is, even where it is too long.

    Raises:
        VividError: no image, no reference possible, or a patient or study whose text is not in the character set that
            the file states.
    """
    stored = dcmread(path, stop_before_pixels=True)
    source = Dataset()
    for tag in list(stored.keys()):  # iterating over the dataset itself would convert every value, and may fail
        try:
            source.add(_readable(stored[tag]))
        except Exception:  # whatever a value's own class raises
            if (keyword := keyword_for_tag(tag)) in KNOWN_BY:
                raise VividError(
                    f"{path}: {keyword} is not in the character set that the file states; "
                    "mend SpecificCharacterSet (0008,0005)"
                ) from None
    if missing := [keyword for keyword in REFERENCE if not source.get(keyword)]:
        raise VividError(f"{path}: has no {missing[0]}; a report needs {', '.join(REFERENCE)} to refer to the image")
    if "Image Storage" not in UID(source.SOPClassUID).name:
        raise VividError(f"{path}: its SOP class is none of DICOM's images; a report can refer only to one of these")
    if source.get("PatientSex") not in ("M", "F", "O"):  # enumerated; no VR says so
        source.PatientSex = ""
    for keyword in TYPE_2:
        if source.get(keyword) is None:
            setattr(source, keyword, "")
    return source


def _readable(element: DataElement) -> DataElement:
    """The element itself; raises where no program could read it."""
    if element.VR in STR_VR and UNDECODED in str(element.value):
        raise ValueError
    if element.VR in PARSED:
        for value in element.value if element.VM > 1 else [element.value]:
            validate_value(element.VR, str(value or ""), RAISE)
    if element.VR == "SQ":
        for item in element.value:
            item.decode()  # else its bytes would be written as they are, in another character set
    return element
