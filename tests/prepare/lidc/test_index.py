"""Files are what they hold, whatever they are called."""

import pytest

from vivid_monai.errors import VividError
from vivid_monai.prepare.lidc.source import index_files

from .making import Scan, balls, header, write_xml


@pytest.fixture
def root(tmp_path):
    """Two series in one folder under names that mislead, XML called a slice, and other things."""
    for uid, suffix in (("1.1", ".xml"), ("1.2", "")):
        Scan(uid, n=3).write(tmp_path / "made", balls())
        for path in sorted((tmp_path / "made").glob("*.dcm")):
            path.rename(tmp_path / f"{uid}_{path.stem}{suffix}")
    write_xml(tmp_path / "deep" / "er" / "1-001.dcm", "1.1", [])
    (tmp_path / "page.xml").write_text("just text")
    xray = header("9.9")
    xray.Modality, xray.SeriesInstanceUID = "DX", "9.8"
    xray.save_as(tmp_path / "1-1.dcm", enforce_file_format=True)
    return tmp_path


def test_slices_and_xml_are_known_by_their_content(root):
    found = index_files([root])
    assert {uid: len(paths) for uid, paths in found.series.items()} == {"1.1": 3, "1.2": 3}
    assert [path.name for path in found.xml] == ["1-001.dcm"]
    assert found.other == {"neither DICOM nor XML": 1, "DICOM, DX": 1}
    assert not found.unreadable


def test_a_folder_inside_another_counts_once_and_xml_alone_can_be_looked_for(root):
    assert len(index_files([root, root / "deep"]).xml) == 1
    alone = index_files([root], dicom=False)
    assert (alone.series, len(alone.xml)) == ({}, 1)


def test_a_damaged_header_is_told_with_its_path(root):
    path = root / "broken"
    # Says that its content is deflated, and it is not.
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99" + b"garbage" * 5)
    found = index_files([root])
    assert list(found.unreadable) == [str(path)]
    assert "damaged DICOM header" in found.unreadable[str(path)]
    assert len(found.series) == 2


def test_a_root_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(VividError, match=r"gone: not a folder"):
        index_files([tmp_path / "gone"])
