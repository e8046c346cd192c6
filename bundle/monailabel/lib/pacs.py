"""Images in a PACS, asked for by DICOMweb, and what readers found in them, kept here."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from fastapi import HTTPException

from lib.requested import quoted
from lib.rules import Rules
from lib.store import FINAL, FolderStore

RADIOGRAPHS = ("DX", "CR")
_CT = {"Modality": "CT"}  # MONAI Label's own default


class PacsStore(FolderStore):
    """Radiographs of a PACS. Each image (SOP instance) is fetched when it is first needed, as the DICOM file it is.

    MONAI Label's own DICOMWebDatastore takes a series for an image, turns it into NIfTI, and can store nothing but
    segmentations, in the PACS. Here an image is one SOP instance and its id the SOP Instance UID; findings are
    stored in the folder, and nothing is written to the PACS.

    Args:
        folder: where images are kept, and the findings.
        client: of the PACS.
        search: what to look for (MONAI_LABEL_DICOMWEB_SEARCH_FILTER): attribute → value, or several values, each of
            which is asked for in turn (QIDO-RS matches one). Without a Modality, or with MONAI Label's default CT:
            DX and CR.
    """

    def __init__(self, folder: Path, client: DICOMwebClient, rules: Rules, search: Mapping[str, Any]) -> None:
        self.client = client
        # A connection that the PACS has closed meanwhile needs a second try; the client's own five would take half a
        # minute, in which the server answers nobody.
        client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=100)
        self.search = {**search, "Modality": RADIOGRAPHS} if dict(search) == _CT else dict(search)
        self.search.setdefault("Modality", RADIOGRAPHS)
        self._listed: list[str] | None = None
        super().__init__(str(folder), rules, auto_reload=False)

    def name(self) -> str:
        return str(self.client.base_url)

    def list_images(self) -> list[str]:
        """SOP Instance UIDs, in order; asked anew each time, so that new images are seen at once.

        Raises:
            HTTPException: 502, the PACS does not answer.
        """
        found = (one for filters in self._filters() for one in self._find(filters))
        self._listed = sorted({one["00080018"]["Value"][0] for one in found})
        return self._listed

    def status(self) -> dict[str, Any]:
        """As of the last listing: MONAI Label wants it at every request, for which the PACS is not to be asked."""
        if self._listed is None:
            with suppress(HTTPException):
                self.list_images()
        done = len(self._done())
        return {"total": len(self._listed or ()), "completed": done, "label_tags": {FINAL: done} if done else {}}

    def get_image_uri(self, image_id: str) -> str:
        if image_id not in self._datastore.objects:
            self._fetch(image_id)
        return super().get_image_uri(image_id)

    def json(self) -> dict[str, Any]:
        return {**super().json(), "images": self.list_images()}

    def _filters(self) -> Iterator[dict[str, Any]]:
        values = [value if isinstance(value, list | tuple) else [value] for value in self.search.values()]
        return (dict(zip(self.search, one, strict=True)) for one in product(*values))

    def _find(self, filters: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            return self.client.search_for_instances(search_filters=filters, get_remaining=True)
        except requests.RequestException as error:
            raise self._unreachable(error) from error

    def _fetch(self, image_id: str) -> None:
        found = self._find({"SOPInstanceUID": image_id}) if image_id.strip(".0123456789") == "" else []
        if not found:
            raise HTTPException(404, f"there is no image {quoted(image_id)} in {self.name()}")
        study, series, instance = (found[0][tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
        try:
            # As it is stored: without "*" a PACS may decode JPEG by itself, to other pixels.
            dataset = self.client.retrieve_instance(study, series, instance, media_types=(("application/dicom", "*"),))
        except requests.RequestException as error:
            raise self._unreachable(error) from error
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{instance}.dcm"
            dataset.save_as(path, enforce_file_format=True)
            self.add_image(instance, str(path), {"StudyInstanceUID": study, "SeriesInstanceUID": series})

    def _unreachable(self, error: Exception) -> HTTPException:
        return HTTPException(502, f"{self.name()} does not answer: {type(error).__name__}")
