"""The image that a report is about: read without pixels, and without a word about the patient outside the report."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.config import RAISE, disable_value_validation
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID
from pydicom.valuerep import STR_VR, validate_value

from vivid_monai.errors import VividError

REFERENCE = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
"""What a report needs to point at an image (type 1)."""

KNOWN_BY = ("PatientName", "PatientID", "StudyID", "AccessionNumber", "ReferringPhysicianName")
"""Text by which people and archives know a patient and a study; where it cannot be read there is no report."""

TYPE_2 = (*KNOWN_BY, "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
"""What the modules Patient and General Study must have and may leave empty (PS3.3, C.7.1.1 and C.7.2.1)."""

PARSED = {"AS", "CS", "DA", "DS", "DT", "IS", "TM"}
"""Value representations that programs compute with."""

UNDECODED = "\ufffd"
"""What pydicom puts in the place of bytes that are not of the stated character set."""


@contextmanager
def discreet(source: Path) -> Iterator[None]:
    """Keep values of the source out of logs, warnings and messages.

    highdicom logs instance UIDs and warns with names, pydicom's warnings and the exceptions of both quote values. Of
    an exception only the type is told. Logging, warnings and pydicom's checks are off in the whole process meanwhile.

    Raises:
        VividError: anything went wrong in the block.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except VividError:
        raise
    except Exception as error:
        raise VividError(
            f"{source}: no report can be made for this file ({type(error).__name__}); what it holds of the patient "
            "could stand in the full message, which is therefore not shown"
        ) from None
    finally:
        logging.disable(disabled)


def read_source(path: Path) -> Dataset:
    """Read what a report takes over from an image. Call it, and use its result, inside of `discreet`.

    Attributes of type 2 that the file lacks are there and empty. What no program could read in the report is left out:
    dates, times, numbers and codes that break the rules of their value representation, and text that is not in the
    character set that the file states. Other text stands as it is, even where it is too long.

    Raises:
        VividError: not a readable DICOM file, no image, no reference possible, or a patient or study whose text is
            not in the character set that the file states.
    """
    try:
        stored = dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        raise VividError(f"{path}: not a DICOM file; a report in DICOM needs the DICOM image it is about") from None
    except OSError as error:
        raise VividError(f"{path}: cannot be read: {error.strerror or type(error).__name__}") from None

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
