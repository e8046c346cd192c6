"""Features: every image once, in order, in evaluation mode, with what was skipped."""

import numpy as np
import torch

from vivid_monai.data.skipped import Skipped
from vivid_monai.evaluation.features import extract_features


class Doubling(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def features(self, x):
        return self.dropout(x.flatten(1) * 2)


def test_rows_follow_the_loader():
    batches = [
        {
            "image": torch.arange(4.0).reshape(2, 1, 1, 2) + 10 * i,
            "states": torch.tensor([[0, 1], [-1, 2]]),
            "id": [f"{i}a", f"{i}b"],
            "patient_id": ["p", "q"],
            "skipped": [Skipped(path=f"{i}.png", reason="truncated")],
        }
        for i in range(2)
    ]
    network = Doubling().train()
    got = extract_features(network.features, batches)
    np.testing.assert_array_equal(got.x, [[0, 2], [4, 6], [20, 22], [24, 26]])
    assert got.states.tolist() == [[0, 1], [-1, 2]] * 2
    assert got.ids.tolist() == ["0a", "0b", "1a", "1b"]
    assert got.patients.tolist() == ["p", "q", "p", "q"]
    assert got.skipped == (("0.png", "truncated"), ("1.png", "truncated"))
    assert network.training, "the mode is put back"
