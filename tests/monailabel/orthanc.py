"""Orthanc, a PACS, with its DICOMweb plugin, in a process of its own on this machine."""

import contextlib
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from tests.monailabel.server import free_port, running, wait_for

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ME, PACS = "SENDER", "PACS"


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc.

    Attributes:
        python: one with pynetdicom.
    """

    python: str
    http: int
    dicom: int
    process: Popen

    @property
    def dicomweb(self) -> str:
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def store(self, *paths: Path) -> None:
        """C-STORE (PS3.4 B), each file as it is."""
        command = [self.python, "-m", "pynetdicom", "storescu", "127.0.0.1", str(self.dicom), *map(str, paths)]
        done = subprocess.run([*command, "-cx", "-aet", ME, "-aec", PACS], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def changes(self) -> dict:
        """How much is stored."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/statistics", timeout=30) as answer:
            return json.loads(answer.read())


def missing() -> str | None:
    """Why Orthanc cannot be run here; None where it can."""
    if shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin") and PLUGIN.is_file():
        return None
    return "no Orthanc with DICOMweb: apt-get install orthanc orthanc-dicomweb"


@contextlib.contextmanager
def orthanc(python: str, folder: Path) -> Iterator[Orthanc]:
    """An empty one, which accepts only what this machine sends. Ends with the block."""
    http, dicom = free_port(), free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": dicom,
        "DicomAet": PACS,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomCheckModalityHost": True,
        "DicomModalities": {"sender": [ME, "127.0.0.1", 104]},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
    with running([program, str(folder / "orthanc.json")], folder / "orthanc.log", cwd=folder) as process:
        one = Orthanc(python, http, dicom, process)
        wait_for(one.changes, process, folder / "orthanc.log")
        yield one
