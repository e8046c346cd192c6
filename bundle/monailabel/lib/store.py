"""Images in a folder, and what readers found in them."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.requested import check_text, quoted
from lib.rules import Rules

FINAL = DefaultLabelTag.FINAL.value
IMAGES = tuple(f"*.{ending}" for name in ("png", "jpg", "jpeg", "dcm") for ending in (name, name.upper()))


class FolderStore(LocalDatastore):
    """A folder of PNG, JPEG and DICOM files; findings go to its labels/final as UMS records, one file per image.

    Which images have findings is read from these files, not from MONAI Label's index: every process of MONAI Label
    writes the whole index as it knows it, so that an entry can be lost while a training starts.
    """

    def __init__(self, folder: str, rules: Rules, *, auto_reload: bool, read_only: bool = False) -> None:
        self.rules = rules
        super().__init__(folder, extensions=IMAGES, auto_reload=auto_reload, read_only=read_only)
        ids = Counter(self._to_id(file)[0] for file in self._list_files(folder, IMAGES))
        if twice := sorted(image for image, n in ids.items() if n > 1):
            raise ValueError(f"{folder}: several files are called {twice[0]} but for their ending; rename one")

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        """Without hidden files, names that are no text, and what is no file: a pipe would block the server."""
        found = super()._list_files(path, patterns)
        return {name: file for name, file in found.items() if _is_file(Path(path), file)}

    def get_image_uri(self, image_id: str) -> str:
        if uri := super().get_image_uri(image_id):
            return uri
        raise HTTPException(404, f"there is no image {quoted(image_id)}")

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        known = label_tag == FINAL and label_id in self._done()  # never a path that a request made up
        return str(self._record(label_id)) if known else ""

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        done = self._done()
        return [image for image in self.list_images() if image in done]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        done = self._done()
        return [image for image in self.list_images() if image not in done]

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Image file and record file of every image with findings."""
        return [
            {"image": self.get_image_uri(image), "label": self.get_label_uri(image, FINAL)}
            for image in sorted(self._done())
        ]

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store what a reader said (:meth:`lib.rules.Rules.record`) as a record; an earlier one is kept beside it.

        Raises:
            HTTPException: 404 no such image, 422 what is wrong with the findings.
        """
        if label_tag != FINAL:
            raise HTTPException(422, f"not stored: findings have the tag {FINAL}, not {quoted(label_tag)}")
        check_text(label_info)
        image = Path(self.get_image_uri(image_id)).name
        record = self.rules.record(image, Path(label_filename).read_bytes())
        if (old := self._record(image_id)).is_file():
            kept = Path(self._datastore.label_path("replaced")) / f"{image_id}-{old.stat().st_mtime_ns}.json"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(old, kept)
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "findings.json"
            written.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
            return super().save_label(image_id, str(written), label_tag, label_info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        check_text(image_info)
        return super().add_image(image_id, image_filename, image_info)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        check_text(info)
        super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        check_text(info)
        super().update_label_info(label_id, label_tag, info)

    def _record(self, image_id: str) -> Path:
        return Path(self._datastore.label_path(FINAL)) / f"{image_id}.json"

    def _done(self) -> set[str]:
        return {path.stem for path in Path(self._datastore.label_path(FINAL)).glob("*.json")}


def _is_file(folder: Path, name: str) -> bool:
    sayable = not name.startswith(".") and name.encode(errors="ignore").decode() == name
    return sayable and (folder / name).is_file()
