"""A small LIDC-IDRI: ten patients with one scan, two nodules and four readers each."""

from pathlib import Path

import pytest

from .making import Mark, Scan, balls, disc, roi, write_xml

N_PATIENTS = 10


def scan_of(number: int) -> Scan:
    """Scans differ in spacing and direction."""
    spacing, step = ((0.75, 0.75), 2.5) if number % 2 else ((0.6, 0.6), -2.0)
    first = (-30.0, -30.0, -20.0 if step > 0 else 20.0)
    return Scan(f"1.2.{number}", patient=f"LIDC-IDRI-{number:04d}", spacing=spacing, step=step, first=first, n=14)


def sessions_of(scan: Scan, number: int) -> list[list[Mark]]:
    """Nodule one: all four readers, malignancy 1 or 5 by patient; nodule two: one reader, 3."""
    sure = 1 if number % 2 else 5
    one = [roi(scan, k, disc(30, 40, r)) for k, r in ((4, 3), (5, 6), (6, 4))]
    two = [roi(scan, 12, disc(60, 20, 4))]
    return [[Mark(f"n{reader}", one, sure), *([Mark("x", two, 3)] if reader == 2 else [])] for reader in range(4)]


@pytest.fixture
def lidc(tmp_path: Path) -> Path:
    """The root; XML of odd patients lies beside their DICOM, of even ones in a folder of its own."""
    root = tmp_path / "LIDC-IDRI"
    for number in range(1, N_PATIENTS + 1):
        scan = scan_of(number)
        point = scan.points(5)[40, 30]
        folder = root / scan.patient / "01-01-2000" / f"3000{number}"
        scan.write(folder, balls((point, 4, 40 + number)))
        beside = folder / "069.xml" if number % 2 else root / "tcia-lidc-xml" / "157" / f"{number}.xml"
        write_xml(beside, scan.uid, sessions_of(scan, number))
    return root
