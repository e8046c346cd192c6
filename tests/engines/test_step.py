"""The optimisation step: its loss is that of the whole batch, however the batch is cut up."""

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tolerance import close, float32
from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import collate, image_loader
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.targets import StatesTarget
from vivid_monai.engines.step import PrepareBatch, PretrainStep, ValidationStep, unwrap, warmup_cosine
from vivid_monai.errors import VividError
from vivid_monai.images.augment import Drawn, RandomAugmentation
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.objectives import FindingsBCE, Objective, StateObjective
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.projector import Projector
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.teacher import build_teacher
from vivid_monai.networks.vit import ViT
from vivid_monai.prepare.phantoms import prepare

pytestmark = pytest.mark.numeric

FIELDS = ["a", "b", "c"]


def make_pretrainer(seed: int = 0, *, orthogonality: float = 0.5, patch_size: int = 16, **teacher: Any) -> Pretrainer:
    torch.manual_seed(seed)
    encoder = ViT(img_size=32, patch_size=patch_size, preset="micro")
    dim = encoder.embed_dim
    torch.manual_seed(seed)
    made = build_teacher(**({"fields": FIELDS, "kind": "none", "embed_dim": 32} | teacher))
    projector = Projector(dim, out_dim=made.embed_dim, dropout=0.0)
    return Pretrainer(encoder, {"states": StateObjective(SPD(dim), projector, made, orthogonality=orthogonality)})


def make_normed() -> Pretrainer:
    """One with a batch norm in its encoder."""
    network = make_pretrainer()
    patches = network.encoder.patch_embedding
    patches.patch_embeddings = torch.nn.Sequential(
        patches.patch_embeddings, torch.nn.BatchNorm2d(network.encoder.embed_dim)
    )
    return network


def make_batch(n: int = 6, seed: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randint(-1, 3, (n, 3), generator=generator)
    states[0] = -1  # an image about which nothing can be asked
    asked = states >= 0
    image = torch.randn(n, 1, 32, 32, generator=generator)
    return {"image": image, "states": states, "asked": asked, "id": [str(i) for i in range(n)], "skipped": []}


def make_engine(network, *, lr=0.0, amp=False):
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    return SimpleNamespace(
        network=network,
        optimizer=optimizer,
        prepare_batch=PrepareBatch(),
        non_blocking=False,
        loss_function=unwrap(network).loss,
        amp=amp,
        amp_kwargs={},
        state=SimpleNamespace(device=torch.device("cpu"), iteration=1),
    )


def gradients(network) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def reference_loss(network, batch) -> torch.Tensor:
    states = network.objectives["states"]
    spd = states.spd(network.encoder(batch["image"]))
    answer = states.teacher(states.projector(spd.embeddings), batch["states"], batch["asked"])
    return answer.nll.sum() / answer.count.sum() + 0.5 * spd.penalty.mean()


def test_loss_and_gradient_are_the_batchs():
    network, batch = make_pretrainer(), make_batch()
    engine = make_engine(network)
    [output] = PretrainStep(clip_norm=None)(engine, batch)
    got = gradients(network)
    network.zero_grad(set_to_none=True)
    loss = reference_loss(network, batch)
    loss.backward()
    assert output["loss"] == pytest.approx(loss.item(), abs=float32(depth=6))
    assert output["count/nll"] == batch["asked"].sum().item()
    torch.testing.assert_close(got, gradients(network), **close(depth=12))


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="Inductor compiles for the processor that is there")
def test_compiled_parts_say_what_plain_ones_say():
    teacher = {"kind": "lm", "layout": "short_slots"}
    plain, compiled, batch = make_pretrainer(**teacher), make_pretrainer(**teacher), make_batch()
    names = list(compiled.state_dict())
    compiled.compile()
    states = compiled.objectives["states"]
    assert list(compiled.state_dict()) == names
    assert all(part._compiled_call_impl for part in (compiled.encoder, states.spd, states.projector))
    [expected] = PretrainStep(clip_norm=None)(make_engine(plain), batch)
    [got] = PretrainStep(clip_norm=None)(make_engine(compiled), batch)
    assert got == pytest.approx(expected, rel=float32(depth=8, scale=10))
    torch.testing.assert_close(gradients(compiled), gradients(plain), **close(depth=16, scale=7))


@pytest.mark.parametrize("size", [1, 2, 4, 5, 100])
def test_micro_batches_change_nothing(size):
    network, batch = make_pretrainer(), make_batch()
    [whole] = PretrainStep(clip_norm=None)(make_engine(network), batch)
    expected = gradients(network)
    [cut] = PretrainStep(clip_norm=None, micro_batch_size=size)(make_engine(network), batch)
    assert cut == pytest.approx(whole, rel=float32(depth=6))
    torch.testing.assert_close(gradients(network), expected, **close(depth=12))


@pytest.mark.parametrize(
    ("build", "size", "parts"),
    [(make_normed, 3, [2]), (make_normed, 6, []), (make_normed, None, []), (make_pretrainer, 3, [])],
)
def test_a_batch_norm_in_a_step_that_is_cut_is_told_once(caplog, build, size, parts):
    step, engine = PretrainStep(micro_batch_size=size), make_engine(build())
    for _ in range(2):
        step(engine, make_batch())
    assert [record.args for record in caplog.records] == [(number,) for number in parts]
    assert all("normalised by itself" in record.message for record in caplog.records)


def test_a_batch_without_any_answerable_field_moves_only_by_the_penalty():
    network, batch = make_pretrainer(orthogonality=0.0), make_batch()
    batch["states"][:], batch["asked"][:] = -1, False
    [output] = PretrainStep()(make_engine(network), batch)
    assert output["loss"] == 0
    assert not gradients(network).any()


def test_gradients_are_clipped_to_the_norm():
    network, batch = make_pretrainer(), make_batch()
    [output] = PretrainStep(clip_norm=1e-3)(make_engine(network), batch)
    assert output["grad_norm"] > 1e-3
    assert gradients(network).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_steps_lower_the_loss():
    network, batch = make_pretrainer(orthogonality=0.01), make_batch()
    engine = make_engine(network, lr=0.1)
    losses = [PretrainStep()(engine, batch)[0]["loss"] for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]


def test_bf16_comes_close():
    network, batch = make_pretrainer(), make_batch()
    [exact] = PretrainStep()(make_engine(network), batch)
    [rough] = PretrainStep()(make_engine(network, amp=True), batch)
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert rough["loss"] != exact["loss"]


@pytest.mark.parametrize("size", [None, 2])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_images(size):
    network, batch = make_pretrainer(), make_batch()
    batch["image"][2] = float("nan")
    engine, before = make_engine(network, lr=0.1), network.encoder.cls_token.clone()
    images = "0, 1, 2, 3, 4, 5" if size is None else "2, 3"
    with pytest.raises(VividError, match=rf"loss became nan at step 1.*images: {images}$"):
        PretrainStep(micro_batch_size=size)(engine, batch)
    assert torch.equal(network.encoder.cls_token, before)


def test_a_gradient_that_is_no_number_stops_the_run_before_the_optimisers_step():
    network, batch = make_pretrainer(), make_batch()
    # √(w²) at 0: the loss is finite, its gradient is 0 / 0.
    network.objectives["states"].teacher.query.data.zero_()
    loss = network.loss
    network.loss = lambda *given: loss(*given) + network.objectives["states"].teacher.query.square().sum().sqrt()
    engine, before = make_engine(network, lr=0.1), [p.clone() for p in network.parameters()]
    with pytest.raises(VividError, match=r"gradient became nan at step 1.*images: 0, 1, 2, 3, 4, 5$"):
        PretrainStep()(engine, batch)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), before, strict=True))


READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "nonzero", "cpu", "numpy")


@pytest.mark.parametrize("size", [None, 2])
def test_the_host_reads_from_the_device_once_in_a_step(monkeypatch, size):
    network, batch = make_pretrainer(), make_batch()
    for part in network.objectives["states"].teacher, network.objectives["states"].teacher.__class__:
        monkeypatch.setattr(part, "check_questions", lambda *_: None)  # what a teacher reads is its own
        monkeypatch.setattr(part, "questions", lambda *given: given[-2:])
    engine, seen = make_engine(network), []
    for name in READS:
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, n=name, r=real, **k: (seen.append(n), r(self, *a, **k))[1]
        )
    PretrainStep(micro_batch_size=size)(engine, batch)
    monkeypatch.undo()
    assert seen == ["tolist"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_waits_for_the_gpu_once_for_the_questions_and_once_for_the_numbers_of_a_step():
    network = make_pretrainer().to("cuda")
    batch = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in make_batch().items()}
    engine = make_engine(network)
    engine.non_blocking, engine.state.device = True, torch.device("cuda")
    step = PretrainStep()
    step(engine, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as warned:
            step(engine, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(warned) == 2, [str(one.message) for one in warned]


def test_validation_answers_do_not_depend_on_the_truth():
    network, batch = make_pretrainer(), make_batch()
    first = ValidationStep()(make_engine(network), batch)["states"]
    batch["states"] = batch["states"].roll(1, 0)
    again = ValidationStep()(make_engine(network), batch)["states"]
    torch.testing.assert_close(first["log_probs"], again["log_probs"])
    assert torch.isfinite(first["log_probs"]).all(), "every field is asked, also where its truth is unknown"
    blank = network.predict({"image": torch.zeros(1, 1, 32, 32), "states": batch["states"][:1]})["states"]
    torch.testing.assert_close(first["blank"]["log_probs"], blank["log_probs"])


def test_validation_says_which_data_set_an_image_is_of_where_that_is_known():
    network, batch, names = make_pretrainer(), make_batch(), [*"abcabc"]
    assert "dataset" not in ValidationStep()(make_engine(network), batch)["states"]
    assert ValidationStep()(make_engine(network), {**batch, "dataset": names})["states"]["dataset"] == names
    padding = {**batch, "dataset": names, "padding": True}
    assert ValidationStep()(make_engine(network), padding)["states"]["dataset"] == []


class Similarity(Objective):
    """A toy of contrastive learning: images of the same first finding are to be alike (softmax over the batch)."""

    whole_batch = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim, {"contrastive": 1.0})
        self.head = torch.nn.Linear(dim, 8)

    def forward(self, tokens, batch):
        embedded = torch.nn.functional.normalize(self.head(tokens[:, 0]), dim=1)
        alike = (batch["states"][:, :1] == batch["states"][:, 0]).float()
        return {"contrastive": -(alike * (4 * embedded @ embedded.T).log_softmax(1)).sum()}

    def counts(self, batch):
        return {"contrastive": batch["states"].new_full((), len(batch["states"]))}


def make_joint(second: str = "alike") -> Pretrainer:
    """Two objectives with weights; "alike" compares the images of a batch, "findings" can be cut."""
    states = make_pretrainer()
    dim = states.encoder.embed_dim
    other = Similarity(dim) if second == "alike" else FindingsBCE(FIELDS, dim)
    torch.nn.init.normal_(other.head.weight, std=0.1)
    other.weights = dict.fromkeys(other.weights, 0.3)
    return Pretrainer(states.encoder, {"states": states.objectives["states"], second: other})


def test_several_objectives_add_up_with_their_weights():
    joint, alone, batch = make_joint(), make_pretrainer(), make_batch()
    [output] = PretrainStep(clip_norm=None)(make_engine(joint), batch)
    [states] = PretrainStep(clip_norm=None)(make_engine(alone), batch)
    assert output["states/nll"] == pytest.approx(states["nll"])
    assert output["loss"] == pytest.approx(states["loss"] + 0.3 * output["alike/contrastive"])
    assert output["count/alike/contrastive"] == 6
    head = joint.objectives["alike"].head.weight.grad
    assert head.abs().sum() > 0
    assert list(joint.metrics()) == ["states/macro_auroc"]


def test_images_that_are_compared_cannot_be_cut_into_micro_batches():
    step = PretrainStep(micro_batch_size=4)
    with pytest.raises(VividError, match="micro_batch_size=4 would cut a batch of 6 images"):
        step(make_engine(make_joint()), make_batch())
    PretrainStep(micro_batch_size=6)(make_engine(make_joint()), make_batch())


@pytest.mark.parametrize("build", [lambda: make_pretrainer(orthogonality=-1), lambda: PretrainStep(micro_batch_size=0)])
def test_impossible_settings_are_refused(build):
    with pytest.raises(VividError):
        build()


PREPROCESS = Preprocess(size=32, channels=3)


def test_a_batch_is_augmented_as_its_items_were_drawn(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = {"image": str(tmp_path / "a.png"), "states": [0, -1], "id": "a", "patient_id": "p"}
    augmentation = RandomAugmentation(PREPROCESS)
    dataset = ImageDataset([row], PREPROCESS, targets=[StatesTarget()], augmentation=augmentation, seed=3)
    batch = collate([dataset[0, 0], dataset[0, 1]])
    moved = PrepareBatch(augmentation)(batch, torch.device("cpu"))
    image, states, asked = (moved[key] for key in ("image", "states", "asked"))
    assert moved["id"] == ["a", "a"]
    assert (image.dtype, image.shape) == (torch.float32, (2, 3, 32, 32))
    assert not torch.equal(image[0], image[1])
    for draw in (0, 1):
        seed = int(np.random.SeedSequence([3, draw]).generate_state(2)[0])
        alone = augmentation(torch.from_numpy(pixels)[None, None], Drawn.stack([augmentation.draw(seed)]))
        torch.testing.assert_close(image[draw : draw + 1], alone)
    assert states.tolist() == [[0, -1], [0, -1]]
    assert asked.tolist() == [[True, False], [True, False]]
    assert batch["image"].dtype == torch.uint8, "the batch itself stays as it was"


def rates(steps: int, **options) -> list[list[float]]:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (2e-5, 1e-4)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = warmup_cosine(optimizer, steps=steps, **options)
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [*seen, [group["lr"] for group in optimizer.param_groups]]


def test_warms_up_to_each_groups_peak_and_ends_at_a_tenth_of_it():
    seen = rates(1000, warmup_steps=100, final_fraction=0.1)
    assert seen[0] == [0, 0]
    assert seen[50] == pytest.approx([1e-5, 5e-5])
    assert seen[100] == pytest.approx([2e-5, 1e-4])
    assert seen[550] == pytest.approx([2e-5 * 0.55, 1e-4 * 0.55])
    assert seen[1000] == pytest.approx([2e-6, 1e-5])


@pytest.mark.parametrize(
    "options", [{"warmup_steps": 10}, {"warmup_steps": -1}, {"warmup_steps": 1, "final_fraction": 2}]
)
def test_refuses_what_does_not_fit(options):
    with pytest.raises(VividError):
        rates(10, **options)


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    manifest = Manifest.load(prepare(tmp_path_factory.mktemp("data") / "phantoms", n=60, seed=1, size=32))
    items = manifest.select("train").items(manifest.fields)
    return manifest.fields, image_loader(
        ImageDataset(items, Preprocess(size=32), targets=[StatesTarget()], cache=True), 8, seed=0
    )


def overlap_after_training(loader, weight: float) -> float:
    fields, batches = loader
    network = make_pretrainer(orthogonality=weight, fields=fields, patch_size=8)
    engine = make_engine(network)
    engine.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    step = PretrainStep()
    penalties = [step(engine, batch)[0]["penalty"] for _, batch in zip(range(25), batches, strict=False)]
    return sum(penalties[-5:]) / 5


def test_a_weight_on_the_penalty_lowers_the_cosine_between_groups(loader):
    with_penalty, without = overlap_after_training(loader, 0.5), overlap_after_training(loader, 0.0)
    assert with_penalty < without - 0.05
