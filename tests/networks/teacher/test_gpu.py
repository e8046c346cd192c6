import pytest
import torch

from vivid_monai.networks.teacher import PublishedTeacher, SlotTeacher, StateClassifier

FIELDS = ("Edema", "Pleural Effusion")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", [SlotTeacher, PublishedTeacher, lambda lm, fields: StateClassifier(fields, 32)])
def test_a_gpu_says_what_the_cpu_says(layout, make_lm, embeddings):
    teacher = layout(make_lm(), FIELDS).eval()
    states, asked = torch.tensor([[0, 1], [2, -1], [-1, -1]]), torch.tensor([[True, True], [True, True], [False, True]])
    expected = teacher(embeddings, states, asked)
    (grad,) = torch.autograd.grad(expected.nll.sum(), embeddings)
    teacher.cuda()
    moved = embeddings.detach().cuda().requires_grad_()
    output = teacher(moved, states.cuda(), asked.cuda())
    torch.testing.assert_close(output.nll.cpu(), expected.nll, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.log_probs.cpu(), expected.log_probs, rtol=1e-3, atol=1e-3, equal_nan=True)
    torch.testing.assert_close(torch.autograd.grad(output.nll.sum(), moved)[0].cpu(), grad, rtol=1e-3, atol=1e-3)
    assert teacher.count(states.cuda(), asked.cuda()).equal(output.count.sum(1))
