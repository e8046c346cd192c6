"""Splits by patient: a salted hash decides, so a patient's split never depends on who else is in the table."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from vivid_monai.errors import VividError

SPLITS = ("train", "val", "test")
ENOUGH = 10
"""Present and absent images that a field needs: in val to be answered by a bundle, in test to be counted."""


class SplitError(VividError):
    """A patient on two sides of a split, or a split that cannot be drawn."""


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Draw train, val and test by a hash of salt and patient id.

    A patient's place is a number in [0, 1): below ``test`` is test, the next ``val`` are val, the rest train. Adding
    patients moves nobody, and changing ``val`` neither adds to nor takes from test.

    Args:
        salt: names the draw; another salt gives another, independent draw.
        val: fraction of the patients (not of the images) for validation, in [0, 1).
        test: fraction of the patients for test, in [0, 1); val + test < 1.

    Raises:
        SplitError: fractions out of range.
    """

    salt: str = "vivid-med"
    val: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise SplitError(
                f"split fractions val={self.val}, test={self.test} must be in [0, 1), their sum too: the rest is train"
            )

    def position(self, patient_id: str) -> float:
        """The patient's place in [0, 1): the first 53 bits of BLAKE2b over salt, a zero byte and the patient id."""
        digest = blake2b(self.salt.encode() + b"\0" + patient_id.encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / 2**53

    def of(self, patient_id: str) -> str:
        """The split of one patient."""
        place = self.position(patient_id)
        if place < self.test:
            return "test"
        return "val" if place < self.test + self.val else "train"

    def assign(self, patients: pa.ChunkedArray | pa.Array | Iterable[str]) -> pa.Array:
        """Splits for a column of patient ids (string or dictionary, no nulls), hashing each patient once.

        Returns:
            dictionary<int8, string> of the same length.
        """
        codes, ids = encode(patients)
        split_of_patient = np.array([SPLITS.index(self.of(p)) for p in ids.to_pylist()], dtype=np.int8)
        return pa.DictionaryArray.from_arrays(pa.array(split_of_patient[codes]), pa.array(SPLITS))

    def to_dict(self) -> dict:
        return asdict(self)


def encode(patients: pa.ChunkedArray | pa.Array | Iterable[str]) -> tuple[np.ndarray, pa.Array]:
    """Codes int32 (N,) and the distinct ids they index, as strings of Arrow: millions of Python's take a gigabyte."""
    if not isinstance(patients, pa.ChunkedArray | pa.Array):
        patients = pa.array(patients, pa.string())
    if isinstance(patients, pa.ChunkedArray):
        patients = patients.combine_chunks()
    if not pa.types.is_dictionary(patients.type):
        patients = patients.dictionary_encode()
    if patients.null_count:
        raise SplitError(f"{patients.null_count} rows have no patient id: they cannot be split by patient")
    return patients.indices.to_numpy(zero_copy_only=False), patients.dictionary


def assert_disjoint(
    patients: pa.ChunkedArray | pa.Array,
    splits: pa.ChunkedArray | pa.Array,
    *,
    where: str,
    row: Callable[[int], object] = lambda place: f"row {place + 1}",
) -> None:
    """Raise a SplitError where a patient is in two splits; it names rows, and no patient.

    Args:
        where: what was looked at.
        row: what the row at a place, from 0, is called.
    """
    patient_codes, _ = encode(patients)
    split_codes, names = encode(splits)
    # A patient on two sides has two of these sorted distinct pairs, side by side.
    pairs = np.unique(patient_codes.astype(np.int64) * len(names) + split_codes)
    owners = pairs // max(len(names), 1)
    both = np.unique(owners[1:][owners[1:] == owners[:-1]])
    if len(both):
        some = []
        for patient in both[:3]:
            own = np.flatnonzero(patient_codes == patient)
            first = own[np.sort(np.unique(split_codes[own], return_index=True)[1])]
            some.append(" and ".join(f"{row(at)} ({names[int(split_codes[at])]})" for at in first.tolist()))
        raise SplitError(f"{where}: {len(both)} patient(s) are in more than one split, as in {'; '.join(some)}")
