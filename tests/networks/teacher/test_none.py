import torch

from vivid_monai.networks.teacher import StateClassifier

FIELDS = ("Edema", "Pleural Effusion")


def teacher() -> StateClassifier:
    made = StateClassifier(FIELDS, 8)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made


def test_each_field_attends_and_classifies_for_itself():
    made = teacher()
    embeddings = torch.randn(3, 4, 8)
    states = torch.tensor([[0, 2], [1, 1], [2, 0]])
    output = made(embeddings, states, torch.ones(3, 2, dtype=torch.bool))
    for image in range(3):
        for field in range(2):
            attention = torch.softmax(embeddings[image] @ made.query[field] / 8**0.5, 0)
            logits = made.weight[field] @ (attention @ embeddings[image]) + made.bias[field]
            log_probs = logits.log_softmax(0)
            torch.testing.assert_close(output.log_probs[image, field], log_probs.detach())
            torch.testing.assert_close(output.nll[image, field], -log_probs[states[image, field]])


def test_it_starts_as_a_mean_and_an_even_guess():
    torch.manual_seed(0)
    made = StateClassifier(FIELDS, 8)
    log_probs = made(
        torch.randn(3, 4, 8), torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2, dtype=torch.bool)
    ).log_probs
    torch.testing.assert_close(log_probs.exp(), torch.full((3, 2, 3), 1 / 3), rtol=0, atol=0.1)


def test_it_is_trained():
    made = teacher()
    states = torch.tensor([[1, -1]] * 3)
    made(torch.randn(3, 4, 8), states, torch.ones(3, 2, dtype=torch.bool)).nll.sum().backward()
    for parameter in made.parameters():
        assert parameter.requires_grad
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].eq(0).all()
    assert set(made.state_dict()) == {"query", "weight", "bias"}
