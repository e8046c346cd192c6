"""A run: a folder of its own, checkpoints that fit or are refused, and a resumed run equals an uninterrupted one."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch.utils.data import DataLoader

from vivid_monai.data.loader import ResumableBatchSampler
from vivid_monai.engines import run as run_module
from vivid_monai.engines.run import Interrupted, RunCheckpoint, Settings, new_run_dir, run, saves, start_run, way_on
from vivid_monai.errors import VividError


class Items(torch.utils.data.Dataset):
    def __getitem__(self, index_and_draw):
        return torch.tensor([float(v) for v in index_and_draw])


def make_trainer(
    folder: Path,
    *,
    resume=False,
    every=3,
    settings=None,
    stop_after=None,
    keep=2,
    max_epochs=3,
    handlers=(),
    saved=lambda network: {},
):
    """A small network with dropout, so that resuming needs optimiser, schedule, sampler and generator.

    ``saved``: from the network to handlers that the checkpoint saves, by their names.
    """
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    sampler = ResumableBatchSampler(17, 4, seed=3)

    def step(engine, batch):
        network.train()
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()
        scheduler.step()
        if stop_after == engine.state.iteration:
            raise KeyboardInterrupt
        return {}

    save = {
        "network": network,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "settings": Settings(**(settings or {})),
        **(own := saved(network)),
    }
    checkpoint = RunCheckpoint(folder, save, sampler=sampler, every=every, keep=keep, resume=resume)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=max_epochs,
        train_data_loader=DataLoader(Items(), batch_sampler=sampler, generator=torch.Generator()),
        epoch_length=5,
        network=network,
        optimizer=optimizer,
        loss_function=lambda *_: None,
        iteration_update=step,
        decollate=False,
        train_handlers=[*handlers, *own.values(), checkpoint],
    )
    return trainer, network, checkpoint


def weights(network) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("stop_after", [4, 5, 6, 7, 11, 15])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop_after):
    trainer, whole, _ = make_trainer(tmp_path / "whole")
    run(trainer)
    trainer, _, _ = make_trainer(tmp_path / "cut", stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        run(trainer)
    torch.rand(7)  # whatever else drew numbers meanwhile
    trainer, resumed, _ = make_trainer(tmp_path / "cut", resume=True)
    assert 0 < trainer.state.iteration < stop_after
    run(trainer)
    assert trainer.state.iteration == 15
    assert torch.equal(weights(resumed), weights(whole))


def test_a_finished_run_is_not_trained_again(tmp_path, caplog):
    caplog.set_level("INFO", logger="vivid_monai")
    trainer, network, _ = make_trainer(tmp_path)
    run(trainer)
    trainer, resumed, _ = make_trainer(tmp_path, resume=True)
    run(trainer)
    assert torch.equal(weights(resumed), weights(network))
    assert "complete (15 steps)" in caplog.text


def test_keeps_only_the_newest_saves_also_after_resuming(tmp_path):
    trainer, _, checkpoint = make_trainer(tmp_path, stop_after=8)
    with pytest.raises(KeyboardInterrupt):
        run(trainer)
    assert sorted(step for step, _ in saves(checkpoint.directory)) == [5, 6]
    trainer, _, checkpoint = make_trainer(tmp_path, resume=True)
    run(trainer)
    assert sorted(step for step, _ in saves(checkpoint.directory)) == [12, 15]


def test_asked_to_stop_it_saves_and_says_how_to_go_on(tmp_path):
    trainer, _, checkpoint = make_trainer(tmp_path / "checkpoints", every=100)

    @trainer.on(Events.ITERATION_COMPLETED(once=2))
    def interrupt(_):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"after step 3.*--resume True"):
        run(trainer)
    assert [step for step, _ in saves(checkpoint.directory)] == [3]


def test_asked_to_stop_in_the_last_step_of_an_epoch_it_finishes_the_epoch_first(tmp_path):
    ended = []

    class Validation:
        def attach(self, engine):
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: ended.append(engine.state.iteration))

    trainer, _, checkpoint = make_trainer(tmp_path / "checkpoints", every=100, handlers=[Validation()])
    trainer.add_event_handler(Events.ITERATION_STARTED(once=5), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="after step 5"):
        run(trainer)
    assert [step for step, _ in saves(checkpoint.directory)] == ended == [5]


def test_a_new_run_does_not_touch_the_folder_of_another(tmp_path):
    start_run(tmp_path, resume=False)
    trainer, _, _ = make_trainer(tmp_path / "checkpoints")
    run(trainer)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(VividError, match=r"holds a run already.*--resume True"):
        start_run(tmp_path, resume=False)
    with pytest.raises(VividError, match=r"holds a run already.*--resume True"):
        make_trainer(tmp_path / "checkpoints")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    start_run(tmp_path, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "initial_vit.safetensors").touch()
    with pytest.raises(VividError, match=r"has not saved yet.*remove the folder"):
        start_run(tmp_path / "other", resume=False)
    with pytest.raises(VividError, match="nothing to resume"):
        start_run(tmp_path / "other", resume=True)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(VividError, match="nothing to resume"):
        make_trainer(tmp_path, resume=True)


def test_other_settings_are_named(tmp_path):
    trainer, _, _ = make_trainer(tmp_path, settings={"batch_size": 4, "seed": 1})
    run(trainer)
    with pytest.raises(VividError, match="batch_size was 4, is 8"):
        make_trainer(tmp_path, resume=True, settings={"batch_size": 8, "seed": 1})


def test_the_optimizer_of_other_parameter_groups_is_named(tmp_path):
    trainer, _, checkpoint = make_trainer(tmp_path)
    run(trainer)
    _, newest = max(saves(checkpoint.directory))
    state = torch.load(newest, weights_only=True)
    state["optimizer"]["param_groups"] *= 2
    torch.save(state, newest)
    with pytest.raises(VividError, match=rf"the optimizer of .*{newest.name} is another: .*different number"):
        make_trainer(tmp_path, resume=True)


def test_a_truncated_checkpoint_is_named(tmp_path):
    trainer, _, checkpoint = make_trainer(tmp_path)
    run(trainer)
    _, newest = max(saves(checkpoint.directory))
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(VividError, match=newest.name):
        make_trainer(tmp_path, resume=True)


def test_a_full_disk_leaves_the_saves_before_it(tmp_path, monkeypatch):
    real = torch.save
    trainer, _, _ = make_trainer(tmp_path)

    def save(state, file, **options):
        if state["trainer"]["iteration"] > 3:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, file, **options)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(VividError, match=r"No space left.*--resume True"):
        run(trainer)
    assert [path.name for path in tmp_path.iterdir()] == ["step_3.pt"]


def test_what_a_killed_save_left_is_removed(tmp_path):
    (tmp_path / ".step_3.pt.abcd_123.part").write_bytes(b"half")
    trainer, _, _ = make_trainer(tmp_path)
    run(trainer)
    assert {path.name for path in tmp_path.iterdir()} == {"step_12.pt", "step_15.pt"}


def test_run_folders_count_up(tmp_path):
    assert Path(new_run_dir(tmp_path / "runs")).name == Path(new_run_dir(tmp_path / "runs")).name == "001"
    new_run_dir.cache_clear()  # as another process would ask
    assert Path(new_run_dir(tmp_path / "runs")).name == "002"


def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_current", [])
    assert "the same command starts again" in way_on()
    folder = tmp_path / "run"
    start_run(folder, resume=False)
    assert "before anything was trained" in way_on()
    (folder / "checkpoints").mkdir(parents=True)
    assert f"remove {folder}" in way_on()
    (folder / "checkpoints" / "step_3.pt").touch()
    assert way_on() == f"interrupted; continue with the same command plus: --output_dir {folder} --resume True"


def test_where_no_folder_can_be_made_the_option_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(VividError, match=r"no folder of a run can be made here .*--output_dir"):
        new_run_dir(tmp_path / "file" / "runs")
