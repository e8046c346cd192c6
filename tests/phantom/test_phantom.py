"""Phantoms are the same everywhere, valid, and show what their records say."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest

from vivid_monai.errors import VividError
from vivid_monai.phantom import Phantom, generate, read_study
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.verify import verify

SPACE = load_label_space("chexpert-12")


def pronounced(name: str, *, sides: int | None = None) -> Iterator[Phantom]:
    """Frontal phantoms of 128 pixels in which a finding is pronounced."""
    for index in count():
        told = read_study(3, index)
        ill = told.drawn.get(name)
        if told.visit.view != "lateral" and ill and ill.severity > 0.6 and sides in (None, len(ill.sides)):
            yield generate(3, index, 128)


def first(phantoms: Iterator[Phantom], n: int) -> list[Phantom]:
    return [phantom for phantom, _ in zip(phantoms, range(n), strict=False)]


def test_a_phantom_depends_on_seed_and_index_alone() -> None:
    forwards = [generate(11, index, 48) for index in range(24)]
    backwards = [generate(11, index, 48) for index in reversed(range(24))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert np.array_equal(one.image, other.image)
        assert one.record == other.record
        assert one.boxes == other.boxes
        assert one.masks.keys() == other.masks.keys()
        assert all(np.array_equal(mask, other.masks[name]) for name, mask in one.masks.items())
    assert len({phantom.image.tobytes() for phantom in forwards}) == 24
    assert not np.array_equal(generate(12, 0, 48).image, forwards[0].image)


def test_size_changes_the_resolution_only() -> None:
    overlaps = []
    for index in range(24):
        small, large = generate(0, index, 96), generate(0, index, 192)
        assert small.image.shape == (96, 96)
        assert large.image.shape == (192, 192)
        assert small.image.dtype == np.uint8
        assert small.report == large.report
        states = [{k: f.state for k, f in phantom.record.findings.items()} for phantom in (small, large)]
        assert states[0] == states[1]
        blocks = large.image.reshape(96, 2, 96, 2).mean((1, 3))
        assert np.corrcoef(blocks.ravel(), small.image.ravel())[0, 1] > 0.98
        for name in small.masks.keys() & large.masks.keys() - {"Support Devices", "Atelectasis"}:
            shrunk = large.masks[name][::2, ::2]
            overlaps.append((shrunk & small.masks[name]).sum() / (shrunk | small.masks[name]).sum())
    assert len(overlaps) > 20
    assert np.mean(overlaps) > 0.85


def test_every_record_is_valid_and_complete() -> None:
    for index in range(150):
        phantom = generate(1, index, 32)
        assert verify(phantom.record) == []
        assert tuple(phantom.record.findings) == SPACE.fields
        assert phantom.record.report == phantom.report
        for name, boxes in phantom.boxes.items():
            mask = phantom.masks[name]
            assert mask.dtype == bool
            assert mask.shape == (32, 32)
            boxed = np.zeros_like(mask)
            for box in boxes:
                boxed[int(box.y) : int(box.y + box.height), int(box.x) : int(box.x + box.width)] = True
            assert (mask & boxed).sum() >= 0.7 * mask.sum()  # crumbs have no box
            if phantom.record.findings[name].state == "present":
                assert phantom.record.findings[name].boxes == boxes


def test_frequencies_are_those_of_a_hospital() -> None:
    n = 3000
    states = {name: Counter() for name in SPACE.fields}
    views: Counter[str] = Counter()
    for index in range(n):
        told = read_study(2, index)
        views[told.visit.view] += 1
        for name, state in told.states.items():
            states[name][state] += 1
    for name, counts in states.items():
        rare = name in ("Fracture", "Lung Lesion", "Pneumonia")
        low, high = (0.02, 0.06) if rare else (0.05, 0.6)
        assert low < counts["present"] / n < high, name
        assert 0.1 < counts["absent"] / n < 0.6, name
        assert 0.003 < counts["uncertain"] / n < 0.1, name
        assert 0.25 < counts[None] / n < 0.75, name
    assert 0.4 < views["AP"] / n < 0.6
    assert views["PA"] > views["lateral"] > 0.1 * n


def test_parents_follow_their_children_and_findings_come_together() -> None:
    told = [read_study(4, index) for index in range(1500)]
    children = 0
    for truth in told:
        for child, parent in SPACE.parents.items():
            if truth.states[child] == "present":
                children += 1
                assert truth.states[parent] == "present"
            if truth.states[child] == "uncertain":
                assert truth.states[parent] != "absent"
    assert children > 500
    large = np.array(["Cardiomegaly" in truth.drawn for truth in told])
    wet = np.array(["Edema" in truth.drawn for truth in told])
    assert wet[large].mean() > 2 * wet[~large].mean()


def test_patients_have_several_images_and_a_study_one_report() -> None:
    patients, studies = defaultdict(list), defaultdict(set)
    for index in range(120):
        record = generate(5, index, 32).record
        patients[record.patient_id].append(record)
        states = tuple(finding.state for finding in record.findings.values())
        studies[record.study_id].add((states, record.report, record.patient_id))
    assert Counter(len(images) for images in patients.values()) == {1: 20, 2: 10, 3: 10, 5: 10}
    assert all(len({(r.sex, r.age) for r in images}) == 1 for images in patients.values())
    assert all(len(told) == 1 for told in studies.values())
    assert len(studies) < 120


@pytest.mark.parametrize(
    ("name", "sign"), [("Consolidation", 1), ("Pleural Effusion", 1), ("Lung Lesion", 1), ("Pneumothorax", -1)]
)
def test_a_finding_of_one_side_stands_out_against_the_other(name: str, sign: int) -> None:
    differences = []
    for phantom in first(pronounced(name, sides=1), 12):
        mask, image = phantom.masks[name], phantom.image.astype(float)
        differences.append(image[mask].mean() - image[:, ::-1][mask].mean())
    assert sign * np.median(differences) > 6


def test_a_finding_lies_on_the_side_its_record_names() -> None:
    told = {"left": [], "right": []}
    for phantom in first(pronounced("Pneumothorax", sides=1), 12):
        columns = np.flatnonzero(phantom.masks["Pneumothorax"].any(0))
        told[phantom.drawn["Pneumothorax"].sides[0]].append(columns.mean() / 128)
    assert told["left"]
    assert told["right"]
    assert min(told["left"]) > 0.5 > max(told["right"])  # the patient's left is on the right of the image


def test_hearts_and_mediastina_are_wider_in_disease() -> None:
    def width(phantom: Phantom, name: str) -> float:
        return phantom.boxes[name][0].width / 128

    severe = np.mean([width(phantom, "Cardiomegaly") for phantom in first(pronounced("Cardiomegaly"), 12)])
    mild = np.mean(
        [
            width(phantom, "Cardiomegaly")
            for index in range(400)
            if (told := read_study(3, index)).visit.view != "lateral"
            and "Cardiomegaly" in told.drawn
            and told.drawn["Cardiomegaly"].severity < 0.3
            and (phantom := generate(3, index, 128))
        ]
    )
    assert severe > 1.1 * mild


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((-1, 0), "seed must be at least 0"),
        ((0, -1), "index must be at least 0"),
        ((0, 1.5), "index must be an integer"),
        ((0, 0, 16), "size must be 32 to 4096"),
        ((0, 0, 5000), "size must be 32 to 4096"),
    ],
)
def test_bad_arguments_are_told(arguments: tuple, told: str) -> None:
    with pytest.raises(VividError, match=told):
        generate(*arguments)
