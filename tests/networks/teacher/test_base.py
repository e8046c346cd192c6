import pytest
import torch

from vivid_monai.errors import VividError
from vivid_monai.networks.teacher import PublishedTeacher, SlotTeacher, StateClassifier
from vivid_monai.networks.teacher.base import nll_per_cell

FIELDS = ("Edema", "Pleural Effusion")


@pytest.fixture(params=["published", "slots", "none"])
def teacher(request, make_lm):
    if request.param == "none":
        return StateClassifier(FIELDS, 32)
    return {"published": PublishedTeacher, "slots": SlotTeacher}[request.param](make_lm(), FIELDS)


WRONG = {
    "a batch without embeddings": ({"embeddings": torch.zeros(3, 32)}, "embeddings must be floating"),
    "no embeddings": ({"embeddings": torch.zeros(3, 0, 32)}, "K ≥ 1"),
    "another width": ({"embeddings": torch.zeros(3, 2, 31)}, r"\(B, K ≥ 1, 32\).*\(3, 2, 31\)"),
    "whole numbers": ({"embeddings": torch.zeros(3, 2, 32, dtype=torch.int64)}, "torch.int64"),
    "another batch": ({"embeddings": torch.zeros(2, 2, 32)}, "2 images but states for 3"),
    "too few fields": ({"states": torch.zeros(3, 1, dtype=torch.int64)}, "states must be"),
    "states as floats": ({"states": torch.zeros(3, 2)}, "states must be torch.int64.*torch.float32"),
    "states of one image": ({"states": torch.zeros(2, dtype=torch.int64)}, "states must be"),
    "a state too high": ({"states": torch.tensor([[0, 3]] * 3)}, r"within -1…2; got 0…3"),
    "a state too low": ({"states": torch.tensor([[-2, 0]] * 3)}, r"within -1…2; got -2…0"),
    "asked as numbers": ({"asked": torch.ones(3, 2, dtype=torch.int64)}, "asked must be torch.bool"),
    "asked of another batch": ({"asked": torch.ones(2, 2, dtype=torch.bool)}, "asked must be"),
}


@pytest.mark.parametrize(("wrong", "complaint"), WRONG.values(), ids=WRONG)
def test_wrong_inputs_are_refused(teacher, wrong, complaint):
    right = {
        "embeddings": torch.zeros(3, 2, 32),
        "states": torch.zeros(3, 2, dtype=torch.int64),
        "asked": torch.ones(3, 2, dtype=torch.bool),
    }
    assert teacher(**right).nll.isfinite().all()
    with pytest.raises(VividError, match=complaint):
        teacher(**(right | wrong))
    if "embeddings" not in wrong:
        with pytest.raises(VividError, match=complaint):
            teacher.count(**{k: v for k, v in (right | wrong).items() if k != "embeddings"})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [([], "list of field names"), ("Edema", "list of field names"), (["Edema", "Edema"], "more than once: Edema")],
)
def test_wrong_fields_are_refused(fields, complaint):
    with pytest.raises(VividError, match=complaint):
        StateClassifier(fields, 8)


def test_nll_per_cell_sums_and_counts():
    logits = torch.tensor([[0.0, 0.0], [5.0, 1.0], [0.0, 3.0]])
    log_probs = logits.log_softmax(1)
    nll, count = nll_per_cell(logits, [0, -100, 1], [(0, 1), (0, 1), (0, 1)], (1, 2))
    torch.testing.assert_close(nll, torch.tensor([[0.0, -(log_probs[0, 0] + log_probs[2, 1])]]))
    assert count.tolist() == [[0, 2]]
