"""What a fine-tuning trains, and which weights it keeps: averaged, best, before it gets no better; resumed, too."""

from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from tests.engines.test_run import make_trainer
from tests.engines.test_step import make_batch, make_engine
from tests.tolerance import close
from vivid_monai.engines.finetuning import Average, BestWeights, merge_adapters, train_only
from vivid_monai.engines.run import run
from vivid_monai.engines.step import PretrainStep
from vivid_monai.errors import VividError
from vivid_monai.networks.densenet import DenseNet
from vivid_monai.networks.objectives import FindingsBCE
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.resnet import ResNet
from vivid_monai.networks.vit import ViT

BACKBONES: dict[str, Any] = {
    "vit": lambda: ViT(img_size=32, preset=None, width=32, depth=3, heads=2, stem="conv", drop_path=0.1),
    "resnet": lambda: ResNet(img_size=32, depth=10, width=8, norm="batch"),
    "densenet": lambda: DenseNet(img_size=32, growth=8, norm="batch"),
}


def build(name: str, trained: str = "all") -> Any:
    torch.manual_seed(0)
    return train_only(BACKBONES[name](), trained)


def names(encoder: nn.Module) -> set[str]:
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("name", "trained", "begin"),
    [
        ("vit", "all", ("",)),
        ("vit", "head", ()),
        ("vit", "last:1", ("blocks.2.", "norm.")),
        ("vit", "last:2", ("blocks.1.", "blocks.2.", "norm.")),
        ("resnet", "last:1", ("stages.3.", "norm.")),
        ("densenet", "last:2", ("features.denseblock3.", "features.transition3", "features.denseblock4.",
                                "features.norm5", "norm.")),
    ],
)  # fmt: skip
def test_the_last_blocks_and_what_follows_them_are_trained(name: str, trained: str, begin: tuple[str, ...]) -> None:
    encoder = build(name, trained)
    assert names(encoder) == {key for key, _ in encoder.named_parameters() if key.startswith(begin)}


@pytest.mark.parametrize(
    ("name", "trained", "words"),
    [
        ("vit", "some", "must be all, head, last:N or lora:R"),
        ("vit", "last:0", "must be all"),
        ("vit", "last:4", "vit-32x3x2/16.* has 3 blocks"),
        ("resnet", "lora:2", "resnet10 has no linear maps in its blocks"),
    ],
)
def test_what_cannot_be_trained_is_told(name: str, trained: str, words: str) -> None:
    with pytest.raises(VividError, match=words):
        build(name, trained)


def test_what_the_tokens_do_not_depend_on_is_frozen() -> None:
    encoder = BACKBONES["vit"]()
    encoder.pooler = nn.Linear(3, 3)
    assert names(train_only(encoder, "all")) == {name for name, _ in BACKBONES["vit"]().named_parameters()}


@pytest.mark.numeric
def test_adapters_start_as_nothing_and_end_in_the_weights() -> None:
    plain = BACKBONES["vit"]().eval()
    encoder = train_only(load(plain), "lora:2").eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(encoder(x), plain(x))
    linear = ("attn.qkv", "attn.out_proj", "mlp.linear1", "mlp.linear2")
    assert names(encoder) == {
        f"blocks.{i}.{name}.lora_{half}.default.weight" for i in range(3) for name in linear for half in "AB"
    }
    with torch.no_grad():
        for key, parameter in encoder.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
    adapted = encoder(x)
    assert not torch.allclose(adapted, plain(x), atol=0.01)
    merge_adapters(encoder)
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(encoder(x), adapted, **close(depth=16))
    merge_adapters(encoder)
    torch.testing.assert_close(encoder(x), adapted, **close(depth=16))


def load(network: nn.Module) -> Any:
    own = BACKBONES["vit"]()
    own.load_state_dict(network.state_dict())
    return own


@pytest.mark.parametrize(("name", "trained"), [("vit", "head"), ("vit", "last:1"), ("resnet", "last:1")])
def test_what_is_frozen_stays_to_the_last_bit_its_batch_norms_too(name: str, trained: str) -> None:
    encoder = build(name, trained)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    network = Pretrainer(encoder, {"bce": FindingsBCE(list("abc"), encoder.embed_dim, prefix=encoder.prefix)})
    engine = make_engine(network)
    engine.optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1)
    average = Average(network, decay=0.5)
    trained_names = names(encoder)
    for _ in range(3):
        PretrainStep()(engine, make_batch())
        average._averaged.update_parameters(network)
    moved = {key for key, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved >= trained_names
    last = {"vit": "blocks.2.", "resnet": "stages.3."}[name]
    assert all(key.startswith((last, "norm.")) for key in moved)
    averaged = {key for key, one in average.network.encoder.state_dict().items() if not torch.equal(one, before[key])}
    assert averaged == moved


def test_an_average_is_that_of_the_weights_after_every_step() -> None:
    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    average, engine = Average(network, decay=0.75), Engine(lambda *_: None)
    average.attach(engine)
    seen = []

    @engine.on(Events.ITERATION_STARTED)
    def move() -> None:
        with torch.no_grad():
            network.weight.normal_()
        seen.append(network.weight.detach().clone())

    engine.run(range(4))
    expected = seen[0]
    for weight in seen[1:]:
        expected = 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(average.network.weight, expected)
    assert Average(network).network is network
    with pytest.raises(VividError, match="ema=1"):
        Average(network, decay=1.0)


class Validator(Engine):
    """Measures what a list says, one number a run; the list goes on where it was, as data do."""

    def __init__(self, values: list[float]) -> None:
        super().__init__(lambda *_: None)
        self.values, self.runs = values, 0
        self.state.metrics, self.state.key_metric_name = {}, "macro_auroc"

    def run(self, epoch: int = 1) -> None:  # type: ignore[override]
        self.state.metrics["macro_auroc"] = self.values[self.runs]
        self.runs += 1
        self.fire_event(Events.COMPLETED)


def tuned(folder, values: list[float], *, first: int = 0, patience: int | None = None, **options: Any) -> Any:
    """A small trainer of three epochs of five steps with an average, and validations that measure `values`."""
    validator = Validator(values)
    validator.runs = first

    class Validated(BestWeights):
        def attach(self, engine: Any) -> None:
            super().attach(engine)
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run(engine.state.epoch))

    def saved(network: nn.Module) -> dict[str, Any]:
        average = Average(network, decay=0.5)
        return {"average": average, "best": Validated(average.network, validator=validator, patience=patience)}

    kept: dict[str, Any] = {}
    trainer, network, _ = make_trainer(folder, saved=lambda network: kept.update(saved(network)) or kept, **options)
    return trainer, network, kept["best"], validator


def weights_of(best: BestWeights) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in best.state_dict()["weights"].values()])


@pytest.mark.parametrize(("values", "step"), [([0.5, 0.6, 0.7, 0.6], 10), ([0.7, 0.7, 0.6, 0.6], 0)])
def test_the_best_validation_is_kept_and_the_first_is_before_the_first_step(tmp_path, values, step) -> None:
    trainer, network, best, _ = tuned(tmp_path, values)
    start = torch.cat([parameter.detach().clone().flatten() for parameter in network.parameters()])
    run(trainer)
    assert best.words == f"of step {step}, validation macro_auroc 0.700"
    assert torch.equal(weights_of(best), start) == (step == 0)
    best.restore(network)
    assert torch.equal(
        torch.cat([parameter.detach().flatten() for parameter in network.parameters()]), weights_of(best)
    )


def test_it_ends_after_as_many_validations_without_a_better_one_and_stays_so(tmp_path) -> None:
    values = [0.5, 0.4, 0.5, 0.9]
    trainer, _, best, _ = tuned(tmp_path, values, patience=2)
    run(trainer)
    assert trainer.state.iteration == 10
    trainer, _, again, validator = tuned(tmp_path, values, patience=2, resume=True, first=3)
    run(trainer)
    assert (trainer.state.iteration, validator.runs) == (10, 3)
    assert torch.equal(weights_of(again), weights_of(best))
    with pytest.raises(VividError, match="patience=0"):
        BestWeights(nn.Linear(1, 1), validator=validator, patience=0)


@pytest.mark.parametrize("stop_after", [4, 5, 7, 12])
def test_resumed_keeps_the_same_weights_bit_for_bit(tmp_path, stop_after) -> None:
    values = [0.5, 0.6, 0.8, 0.7]
    trainer, whole, best, _ = tuned(tmp_path / "whole", values)
    run(trainer)
    trainer, *_ = tuned(tmp_path / "cut", values, stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        run(trainer)
    torch.rand(3)
    trainer, *_ = tuned(tmp_path / "cut", values, resume=True)
    seen = 1 + trainer.state.iteration // 5
    trainer, network, again, validator = tuned(tmp_path / "cut", values, resume=True, first=seen)
    run(trainer)
    assert validator.runs == len(values), "no validation but those at the ends of epochs"
    assert again.words == best.words
    assert torch.equal(weights_of(again), weights_of(best))
    for one, other in zip(network.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_validation_that_measures_nothing_is_told(tmp_path) -> None:
    trainer, *_ = tuned(tmp_path, [float("nan")])
    with pytest.raises(VividError, match="no macro_auroc; give more of them"):
        run(trainer)
