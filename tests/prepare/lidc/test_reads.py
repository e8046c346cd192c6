"""The readers' XML: what is a reading, what is counted, what is refused."""

import numpy as np
import pytest

from vivid_monai.prepare.lidc.reads import ReadsError, read_xml

from .making import NON_NODULE, Mark, Scan, disc, roi, write_xml

SCAN = Scan("1.2.3")


def mark(name="Nodule 001", malignancy=4, k=3, **more):
    return Mark(name, [roi(SCAN, k, disc(20, 30, 4))], malignancy, **more)


def test_a_reading_has_its_reader_ratings_and_outlines(tmp_path):
    hole = roi(SCAN, 3, disc(20, 30, 1), inclusion=False)
    one = mark()
    one.rois.append(hole)
    scan = read_xml(write_xml(tmp_path / "a.xml", SCAN.uid, [[], [one]]))
    (reading,) = scan.readings
    assert (scan.series_uid, scan.study_uid, reading.key) == ("1.2.3", "1.2.9", "2/Nodule 001")
    assert (reading.ratings["malignancy"], reading.ratings["calcification"]) == (4, 6)
    outline, inner = reading.contours
    assert (outline.sop_uid, outline.z, outline.inclusion, inner.inclusion) == (SCAN.sop(3), -12.5, True, False)
    assert outline.points.tolist() == [list(point) for point in one.rois[0][2]]


def test_small_nodules_and_non_nodules_are_counted_not_read(tmp_path):
    path = write_xml(tmp_path / "a.xml", SCAN.uid, [[mark(), mark("small", None)], [mark("s2", None)]])
    path.write_text(path.read_text().replace("</readingSession>", NON_NODULE + "</readingSession>", 1))
    scan = read_xml(path)
    assert ([r.key for r in scan.readings], scan.small, scan.non_nodules) == (["1/Nodule 001"], 2, 1)


def test_an_identifier_that_a_reader_uses_twice_stays_two_readings(tmp_path):
    scan = read_xml(write_xml(tmp_path / "a.xml", SCAN.uid, [[mark("0"), mark("0", k=5)], [mark("0")]]))
    assert [r.key for r in scan.readings] == ["1/0", "1/0#2", "2/0"]


@pytest.mark.parametrize("value", ["", "0", "6", "x", "2.5"])
def test_a_rating_off_its_scale_is_none_and_the_others_stay(tmp_path, value):
    scan = read_xml(write_xml(tmp_path / "a.xml", SCAN.uid, [[mark(changed={"malignancy": value})]]))
    ratings = scan.readings[0].ratings
    assert (ratings["malignancy"], ratings["texture"]) == (None, 5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[: len(text) // 2], "malformed-xml"),
        (lambda text: text.replace("<xCoord>20</xCoord>", "<xCoord>20.5</xCoord>"), "malformed-xml"),
        (lambda text: text.replace("<xCoord>20</xCoord>", "<xCoord>-1</xCoord>"), "malformed-xml"),
        (lambda text: text.replace("<xCoord>20</xCoord>", "<xCoord>99999</xCoord>"), "malformed-xml"),
        (lambda text: text.replace("TRUE", "MAYBE"), "malformed-xml"),
        (lambda text: text.replace(">1.2.3<", "> <"), "no-series"),
        (lambda text: text.replace("readingSession", "CXRreadingSession"), "cxr-read"),
        (lambda text: text.replace("LidcReadMessage", "IdriReadMessage"), "cxr-read"),
        (lambda text: text.replace("LidcReadMessage", "html"), "not-lidc-xml"),
        (lambda text: text.replace("imageSOP_UID>", "other>"), "malformed-xml"),
        (lambda text: text.replace("TRUE", "FALSE"), "malformed-xml"),
    ],
)
def test_what_is_no_reading_of_a_ct_scan_says_why(tmp_path, change, reason):
    path = write_xml(tmp_path / "a.xml", SCAN.uid, [[mark()]])
    path.write_text(change(path.read_text()))
    with pytest.raises(ReadsError) as caught:
        read_xml(path)
    assert caught.value.reason == reason
    assert str(caught.value)


def test_files_that_say_the_same_are_equal_in_content_and_others_are_not(tmp_path):
    def content(name, *marks):
        return read_xml(write_xml(tmp_path / name, SCAN.uid, [list(marks)])).content()

    assert content("a.xml", mark()) == content("b.xml", mark())
    moved = Mark("Nodule 001", [roi(SCAN, 3, disc(20, 31, 4))], 4)
    assert len({content("a.xml", mark()), content("b.xml", mark(malignancy=5)), content("c.xml", moved)}) == 3
    assert np.all(read_xml(tmp_path / "a.xml").readings[0].contours[0].points >= 0)
