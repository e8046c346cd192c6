"""Who may be answered, by the tags of a DICOM file: one rule for every way that leads to an answer.

This file goes into every bundle, so that a bundle refuses the same files with and without this package.
"""

import json
import os
import re
import unicodedata
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from monai.config import KeysCollection
from monai.transforms import MapTransform
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence

from .errors import VividError
from .dicom_file import dcmread, quiet

TAGS = ("modality", "body", "view", "orientation", "quality", "processing")
"""What a file may be refused by, and what overrides that."""

RADIOGRAPHS = ("CR", "DX", "RG", "OT")
"""Modalities that a model of radiographs is of: radiographs, and what does not say what it is."""
_RADIOGRAPH_WORDS = {
    *RADIOGRAPHS,
    *("DR", "XR", "RX", "XRAY", "CXR", "RADIOGRAPH", "RADIOGRAPHY", "RADIOGRAPHIE", "RADIOGRAFIA", "ROENTGEN"),
    *("DIGITAL", "COMPUTED", "PLAIN", "FILM"),
}
_CLASSES = {"2": "CT", "4": "MR", "6.1": "US", "20": "NM", "128": "PT", "1.2": "MG", "1.2.1": "MG", "1.3": "IO"}
_CLASSES |= {"12.1": "XA", "12.2": "RF", "2.1": "CT", "4.1": "MR", "3.1": "US"}
_IMAGES = "1.2.840.10008.5.1.4.1.1."
_FOR_PROCESSING = tuple(f"{_IMAGES}1.{kind}.1" for kind in (1, 2, 3))

BODY_PARTS = {
    "chest": ("CHEST", "THORAX", "LUNG", "RIB", "HEART", "TSPINE"),
    "lung": ("LUNG", "CHEST", "THORAX"),
    "heart": ("HEART", "CHEST", "THORAX"),
    "hand": ("HAND", "FINGER", "THUMB"),
    "foot": ("FOOT", "TOE", "CALCANEUS"),
    "head": ("HEAD", "SKULL", "BRAIN", "FACE"),
}
"""Anatomy of a manifest → what the part of the body may contain; others are asked for by their own name."""
_OTHER_WORDS = {
    "CHEST": "BRUST BRYST BROST BORST POITRINE PECHO PEITO PETTO HRUD KLATKA MELLKAS GOGUS RINTAKEH NGUC CXR ГРУД ОГК "
    "胸 흉부",
    "THORAX": "THORAC TORAX TORAC TORAKS ΘΩΡΑΚ",
    "LUNG": "PULMO POUMON POLMON PLUCA PLICE AKCIGER KEUHKO LONGEN ЛЕГК 肺",
    "HEART": "HERZ COEUR CORAZON CUORE CORACAO HJERTE HJART CARDIAC",
    "HAND": "MAIN MANO",
    "FOOT": "FUSS PIED PIEDE",
    "HEAD": "KOPF SCHADEL TETE CABEZA CRANE CRANIO",
}
"""What hospitals write for the same, without accents."""
_REGIONS = {
    "CHEST": "51185008 T-D3000 816094009 416550000 R-FAB55 416775004 R-FAB56 417437006 R-FAB52 416152001 R-FAB53 "
    "416319003 R-FAB54 72410000 T-D3300 56873002 T-11210 44567001 T-25000 955009 T-26000",
    "LUNG": "39607008 T-28000 86598002 T-280A0",
    "HEART": "80891009 T-32000",
    "RIB": "113197003 T-11300",
    "TSPINE": "122495006 T-11502 T-11503",
    "HAND": "85562004 T-D8700 7569003 T-D8800 76505004 T-D8810",
    "FOOT": "56459004 T-D9700 29707007 T-D9800 80144004 T-12770",
    "HEAD": "69536005 T-D1100 89546000 T-11100 12738006 T-A0100 91397008 T-11196",
}
_REGION_OF = {code: word for word, codes in _REGIONS.items() for code in codes.split()}
"""Codes of SNOMED CT and of SNOMED RT before it (PS3.16, CID 4009 and 4031) → word of the part."""
_CHEST = {"chest", "lung", "heart"}
_ANYWHERE = {"other", "whole-body"}
_UNSAID = {"", "UNKNOWN", "OTHER", "NA", "N/A", "NONE", "UNDEFINED", "UNSPECIFIED", "NOT SPECIFIED", "DEFAULT", "-"}
_ELSEWHERE = {
    *("ABDOMEN", "PELVIS", "KNEE", "ANKLE", "FOOT", "HIP", "FEMUR", "TIBIA", "HAND", "WRIST", "ELBOW", "SHOULDER"),
    *("HUMERUS", "SKULL", "LSPINE", "CSPINE", "KUB"),
}
"""Words of a description that name another part than the chest, and are in no other phrase of radiographers."""

_VIEWS = {
    "lateral": "399067008 R-102CD 399173006 R-10236 399198007 R-10232 399118008 G-5223 399297009 G-5222 49370004 "
    "G-A104 399260004 R-10224 399352003 R-10228 399012007 G-5220 399300004 G-5221 30730003 G-A145",
    "oblique": "399182000 R-102C1 399236003 R-10234 399184004 R-10238 399135007 R-10220 399356000 R-40985 R-10218 "
    "399006002 R-10212 399038007 R-10210 399312000 R-10208 399059000 R-10216 399160007 R-10204 399132005 R-10252 "
    "399325008 R-10254 399004004 R-10246 399225005 R-10250 399288005 R-10248 399099002 R-10230 399368009 R-10226 "
    "260427002 R-40783 260426006 R-40782 399136008 G-5209 399074003 G-5207 399108003 G-5206 399075002 G-5208 "
    "21114003 G-A472 399089007 G-5210 399273000 G-5212 399061009 R-10241 24422004 G-A147",
    "frontal": "399033003 R-10202 399348003 R-10206 272479007 R-40888 R-10214 399321004 G-5215 399001007 G-5216",
}
_VIEW_OF = {code: view for view, codes in _VIEWS.items() for code in codes.split()}
"""Codes of the same (CID 4010 and 501) → view."""
_VIEW_WORDS = {
    "oblique": "OBL OBLIQUE OBLIQUA OBLICUA OBLIQUO SCHRAG SCHRAEG RAO LAO RPO LPO RLO LLO OAD OAI OPD OPI LORDOTIC "
    "LORDOTISCH LORDOTIQUE LORDOTICA APICAL APLORDOTIC AXIAL TANGENTIAL SWIMMERS",
    "lateral": "LL RL LAT LATERAL LATERALE LATERALIS LATERO LLAT RLAT LLATERAL RLATERAL SEITLICH SEITL SEITE PROFIL "
    "PROFILE PERFIL PROFILO SIDE CROSSTABLE",
    "frontal": "PA AP FRONTAL FRONTALE ANTEROPOSTERIOR POSTEROANTERIOR ANTERO POSTERO LLD RLD DECUBITUS DECUB DEC "
    "POSTERIOR ANTERIOR DV VD BILATERAL",
}
_VAGUE = {"LL", "RL", "SIDE", "SEITE", "PROFILE", "AXIAL"}
"""Of these, what may mean something else in a description: "LL" is the left lower lobe too."""
_WORD_VIEW = {word: view for view, words in _VIEW_WORDS.items() for word in words.split()}

_READ = (
    *("Modality", "SOPClassUID", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BodyPartExamined", "AnatomicRegionSequence", "ViewPosition"),
    *("ViewCodeSequence", "PatientOrientation", "FieldOfViewHorizontalFlip", "FieldOfViewRotation"),
    *("QualityControlImage", "CalibrationImage", "PresentationIntentType", "SeriesDescription", "ProtocolName"),
)


class NotAssessed(VividError):
    """An image that the model was not trained for, by its tags; the message says why."""


class Objection(NamedTuple):
    """Why a file is not assessed.

    Attributes:
        tag: of :data:`TAGS`, or "" where nothing overrides it.
        word: what the file says there, upper case.
        reason: never free text of the file, which might name a patient.
    """

    tag: str
    word: str
    reason: str


def trained_on(metadata: Mapping[str, Any]) -> dict[str, list[str]]:
    """The words of the training images' columns "modality", "anatomy" and "view", of a bundle's metadata.

    No view: not known. Bundles of before version 2 have one modality and one anatomy.
    """
    own, answers = metadata["vivid"], metadata["answers"]
    return {
        "modality": own.get("modalities", [answers["modality"]]),
        "anatomy": own.get("anatomies", [answers["anatomy"]]),
        "view": own["views"],
    }


def check_accept(accept: Sequence[str]) -> tuple[str, ...]:
    """The overrides in order, each once, as "view" or "modality=US"; others than those of :data:`TAGS` are refused."""
    given = set()
    for one in [accept] if isinstance(accept, str) else accept:
        tag, _, word = (part.strip() for part in str(one).partition("="))
        if tag not in TAGS:
            near = get_close_matches(tag, TAGS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise VividError(f"accept: {tag!r} is none of {', '.join(TAGS)}{hint}")
        given.add(f"{tag}={word.upper()}" if word else tag)
    return tuple(sorted(given))


def judge(path: str, known: Mapping[str, Sequence[str]], accept: Sequence[str] = ()) -> tuple[str | None, list[str]]:
    """Why a file is not assessed (None: nothing forbids it), and the tags whose objections were overridden.

    Args:
        path: a file; one that is not DICOM, or whose header is damaged, has no objections: reading its pixels tells.
        known: of :func:`trained_on`.
        accept: of :func:`check_accept`.
    """
    overridden = []
    for one in objections(path, known):
        if one.tag in accept or f"{one.tag}={one.word}" in accept:
            overridden.append(one.tag)
        else:
            return one.reason + (f" (--accept {one.tag})" if one.tag else ""), overridden
    return None, overridden


def objections(path: str, known: Mapping[str, Sequence[str]]) -> list[Objection]:
    """All that the tags of a DICOM file have against an answer; pixels are not read.

    Refused are several frames and colour; a modality or a part of the body that was not trained on; images of quality
    control and those that are still to be processed. Where the views of the training images are known, or they are
    chests, oblique and lateral views if none were trained on, and radiographs whose tags say that they are mirrored or
    turned. A view is what ViewPosition and ViewCodeSequence say or, where both are silent, PatientOrientation (PS3.3
    C.7.6.1.1.1: in a frontal view rows run from side to side, in a lateral one between front and back), and last the
    description of the series.
    """
    try:
        if not os.path.isfile(path):
            return []
        with quiet():
            tags = dcmread(path, stop_before_pixels=True, specific_tags=list(_READ))
    except Exception:  # no DICOM, or damaged: reading its pixels says so
        return []
    with quiet():
        return list(_objections(tags, known))


def _objections(tags: Dataset, known: Mapping[str, Sequence[str]]) -> Iterator[Objection]:
    modalities, anatomies, views = (set(known[name]) for name in ("modality", "anatomy", "view"))
    radiographs = bool(modalities & set(RADIOGRAPHS))
    modality = _text(tags, "Modality")
    words = set(_words(modality)) or {_CLASSES.get(_text(tags, "SOPClassUID").removeprefix(_IMAGES), "")} - {""}
    if words - modalities - (_RADIOGRAPH_WORDS if radiographs else {"OT"}):
        what = "a radiograph" if radiographs else " or ".join(sorted(modalities))
        # A code of the standard, and never free text, which might name a patient.
        said = modality or "".join(words)
        code = said if len(said) == 2 and said.isalpha() else "another"
        yield Objection("modality", said, f"not {what}: its modality is {code}")
    if (frames := _number(tags, "NumberOfFrames")) > 1:
        yield Objection("", "", f"{frames:g} frames, not one image")
    if _number(tags, "SamplesPerPixel") > 1 or "COLOR" in _text(tags, "PhotometricInterpretation"):
        yield Objection("", "", "colour, not a grey image")
    if not anatomies & _ANYWHERE:
        yield from _of_part(tags, anatomies)
    if "YES" in (control := _text(tags, "QualityControlImage"), _text(tags, "CalibrationImage")) or control == "BOTH":
        yield Objection("quality", "YES", "an image for quality control, by its tag QualityControlImage")
    if "PROCESSING" in _text(tags, "PresentationIntentType") or _text(tags, "SOPClassUID") in _FOR_PROCESSING:
        yield Objection("processing", "FOR PROCESSING", "raw: its tag PresentationIntentType says FOR PROCESSING")
    if views or anatomies & _CHEST:
        yield from _of_view(tags, views, upright=radiographs and bool(anatomies & _CHEST))


def _of_part(tags: Dataset, anatomies: set[str]) -> Iterator[Objection]:
    own = [word for one in anatomies for word in BODY_PARTS.get(one, (one.upper(),))]
    own += [other for word in own for other in _OTHER_WORDS.get(word, "").split()]
    named = {"BodyPartExamined": _text(tags, "BodyPartExamined")}
    for region in _items(tags, "AnatomicRegionSequence")[:1]:
        named["AnatomicRegionSequence"] = _REGION_OF.get(_code(region), _text(region, "CodeMeaning") or "CODE")
    named = {tag: said for tag, said in named.items() if said not in _UNSAID}
    for tag, said in named.items():
        if not any(word in said for word in own):
            what = " or ".join(sorted(anatomies))
            yield Objection("body", said, f"not of the {what}: its tag {tag} names another part")
            return
    if not named and anatomies <= _CHEST:
        said = f"{_text(tags, 'SeriesDescription')} {_text(tags, 'ProtocolName')}"
        if (elsewhere := _ELSEWHERE.intersection(_words(said))) and not any(word in said for word in own):
            what = " or ".join(sorted(anatomies))
            yield Objection("body", min(elsewhere), f"not of the {what}: its description names another part")


def _of_view(tags: Dataset, views: set[str], *, upright: bool) -> Iterator[Objection]:
    position = _text(tags, "ViewPosition")
    said = {_view_of_words(position), *map(_view_of_item, _items(tags, "ViewCodeSequence"))} - {None}
    rows, columns = ([one[:1] for one in _text(tags, "PatientOrientation").split("\\")] + [""])[:2]
    if not said and rows:
        said = {"lateral"} if rows in "AP" else {"frontal"} if rows in "LR" else set()
    if not said and not position and upright:
        words = set(_words(_text(tags, "SeriesDescription"))) - _VAGUE
        described = {_WORD_VIEW.get(word) for word in words}
        said = set() if "frontal" in described else described  # "PA and lateral": which of them, nobody can tell
    if "oblique" in said and "oblique" not in views:
        yield Objection("view", position or "OBLIQUE", "an oblique view, which the model was not trained on")
    elif "lateral" in said and not views & {"lateral", "LL", "RL"}:
        yield Objection("view", position or "LATERAL", "a lateral view, which the model was not trained on")
    if not upright:
        return
    flipped, angle = _text(tags, "FieldOfViewHorizontalFlip"), _number(tags, "FieldOfViewRotation")
    if rows and columns:  # of the image as it is stored, whatever was done to it before
        if rows + columns == "RF":
            yield Objection("orientation", "RF", "mirrored, by its tag PatientOrientation")
        elif rows + columns not in ("LF", "AF", "PF"):
            yield Objection("orientation", rows + columns, "turned, by its tag PatientOrientation")
    elif flipped == "YES":
        yield Objection("orientation", "YES", "mirrored, by its tag FieldOfViewHorizontalFlip")
    elif angle % 360:
        yield Objection("orientation", f"{angle:g}", "turned, by its tag FieldOfViewRotation")


def _view_of_words(text: str) -> str | None:
    """Of what a hospital wrote: "L LAT", "AP_LORDOTIC", "LAT DECUBITUS" (frontal: the patient lies on the side)."""
    kinds = {_WORD_VIEW.get(word) for word in _words(text)}
    if "oblique" in kinds or "OBLIQ" in text:
        return "oblique"
    if "DEC" not in text and ("lateral" in kinds or re.search("(?<![IFP])LAT", text)):  # bilateral, flat, plate
        return "lateral"
    return "frontal" if "frontal" in kinds else None


def _view_of_item(item: Dataset) -> str | None:
    kinds = {_VIEW_OF.get(_code(item)) or _view_of_words(_text(item, "CodeMeaning"))}
    kinds |= set(map(_view_of_item, _items(item, "ViewModifierCodeSequence")))
    return next((kind for kind in ("oblique", "lateral", "frontal") if kind in kinds), None)


def _code(item: Dataset) -> str:
    return _text(item, "CodeValue") or _text(item, "LongCodeValue")


def _value(tags: Dataset, name: str) -> Any:
    try:
        return tags.get(name)
    except Exception:  # pydicom decodes a value when it is asked for; one that is damaged says nothing
        return None


def _items(tags: Dataset, name: str) -> list[Dataset]:
    value = _value(tags, name)
    return list(value) if isinstance(value, DicomSequence) else []


def _number(tags: Dataset, name: str) -> float:
    try:
        return float(_value(tags, name) or 0)
    except (TypeError, ValueError):
        return 0


def _text(tags: Dataset, name: str) -> str:
    """Upper case, without accents; several values with a backslash between them; "" where there is none."""
    value = _value(tags, name)
    text = "\\".join(map(str, value)) if isinstance(value, MultiValue | list) else str(value or "")
    with suppress(UnicodeError):
        text = text.encode("latin-1").decode("utf-8")  # a code string has no character set, and is read as Latin-1
    text = unicodedata.normalize("NFKD", text.upper().replace("Ł", "L"))
    plain = "".join(one for one in text if not unicodedata.combining(one))
    return unicodedata.normalize("NFC", plain).strip(" \0")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", re.sub("X[ _-]RAY", "XRAY", text))


class RefuseByTagsd(MapTransform):
    """Refuses a file that its tags forbid to answer; ``"accepted"`` names the tags that were overridden.

    Args:
        keys: keys that hold paths.
        metadata: the bundle's metadata.json, or its content.
        accept: tags (:data:`TAGS`) that refuse nothing, or only another word: "view", "modality=US".

    Raises:
        NotAssessed: why, in one line (inside a ``Compose`` as the cause of MONAI's RuntimeError).
        VividError: an unknown tag.
    """

    def __init__(
        self, keys: KeysCollection, *, metadata: str | Path | Mapping[str, Any], accept: Sequence[str] = ()
    ) -> None:
        super().__init__(keys)
        if isinstance(metadata, str | Path):
            metadata = dict(json.loads(Path(metadata).read_text(encoding="utf-8")))
        self.known, self.accept = trained_on(metadata), check_accept(accept)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.keys:
            reason, overridden = judge(str(d[key]), self.known, self.accept)
            if reason:
                raise NotAssessed(reason)
            d["accepted"] = ",".join(overridden)
        return d
