"""The commands as functions: images and manifests in, arrays, records and results out. Each is `vivid_monai.NAME`."""

import filecmp
import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from numpy.typing import NDArray

from vivid_monai.data.manifest import Manifest
from vivid_monai.data.union import load_manifest, manifest_file
from vivid_monai.deploy import predict as prediction
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.model import load_model as load
from vivid_monai.engines.matrix import ASKED, DONE, Cell, forget, run_matrix
from vivid_monai.engines.run import refuse_used, saves
from vivid_monai.engines.setup import device_of_process
from vivid_monai.errors import VividError, did_you_mean, one_line
from vivid_monai.evaluation.encoders import Encoder, load_encoder
from vivid_monai.evaluation.evaluate import evaluate as evaluate_encoders
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.results import Results
from vivid_monai.evaluation.task import Task
from vivid_monai.evaluation.workflows import run_evaluation
from vivid_monai.images.read import ImageError
from vivid_monai.storage.configs import find_configs

__all__ = ["Manifest", "evaluate", "features", "finetune", "load", "predict"]

Place = str | PathLike[str]
Data = Manifest | Place | Sequence[Place]
"""A manifest, or its file or folder; several of these are asked in the union of their fields."""


def predict(
    images: Place | Sequence[Place],
    bundle: Place,
    out: Place | None = None,
    *,
    runtime: str | None = None,
    **options: Any,
) -> prediction.Predictions:
    """Findings of image files by a bundle, as ``vivid predict`` gives them.

    Args:
        images: a file or folder, or several.
        bundle: folder of a bundle of ``vivid bundle``.
        out: folder of the tables, where a later call goes on; None: nothing stays on the disk.
        runtime: "onnx" or "torch"; None: ONNX, where the bundle was built for it.
        options: overlays, reports, accept, batch_size, num_workers, as of :func:`vivid_monai.deploy.predict.predict`.

    Returns:
        ``entries``, one for each file in order, with status, reason and probabilities (of the findings in the order of
        ``rules.fields``); ``records()``, those that are answered as UMS records.

    Raises:
        VividError: an image that does not exist, no bundle, an unknown option, overlays or reports without `out`; as of
            that function. A file that cannot be read is an entry that says so.
    """
    _refuse_unknown("predict", options, _options_of(prediction.predict))
    if out is None and (lost := [name for name in ("overlays", "reports") if options.get(name)]):
        raise VividError(f"predict: {lost[0]} are files; say with out=FOLDER where they go")
    inputs, model = find_inputs(_several(images)), BundleModel(Path(bundle), runtime=runtime)
    if out is not None:
        return prediction.predict(model, inputs, Path(out), **options)
    with TemporaryDirectory() as folder:
        return prediction.predict(model, inputs, Path(folder), **options)


def features(
    images: Manifest | Place | Sequence[Place],
    encoder: Place | Encoder,
    *,
    pool: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device | None = None,
) -> NDArray[np.float32]:
    """Pooled features of images by a frozen encoder, float32 (N, D), in the order of the images.

    Args:
        images: files, or a manifest, whose rows of all splits are taken (``manifest.select("test")``: of one).
        encoder: what :func:`vivid_monai.evaluation.encoders.load_encoder` takes, or an encoder of it.
        pool: how tokens become features; None: the encoder's default.
        batch_size, num_workers: images to a forward pass; processes that read them.
        device: None: CUDA where there is one.

    Raises:
        ImageError: an image cannot be read; a VividError.
        VividError: no image, no such encoder or pool.
    """
    if isinstance(encoder, Encoder):
        if pool is not None:
            raise VividError("features: an encoder that is loaded has its pool; give pool to load_encoder")
        loaded = encoder
    else:
        loaded = load_encoder(os.fspath(encoder), pool=pool)
    items: Sequence[dict[str, Any]]
    if isinstance(images, Manifest):
        items = images.items()
    else:
        items = [{"image": os.fspath(one), "id": f"{one} ({number})"} for number, one in enumerate(_several(images))]
    if not len(items):
        raise VividError("features: there is no image")
    store = FeatureStore(
        None, batch_size=batch_size, num_workers=num_workers, device=device_of_process() if device is None else device
    )
    rows = []
    for chunk, unreadable in store.extract(loaded, items):
        for lost in unreadable.values():
            raise ImageError(
                one_line(VividError(f"{lost.reason}; features are of images that can be read: leave it out"))
            )
        rows.append(chunk)
    return np.concatenate(rows)


def evaluate(
    encoders: Place | Sequence[Place] | Mapping[str, Place | Sequence[Place]],
    manifest: Data,
    output_dir: Place | None = None,
    *,
    task: str = "table",
    fields: Sequence[str] | None = None,
    source: Data | None = None,
    label_space: str | None = None,
    window: tuple[float, float] | None = None,
    slices: int = 1,
    cache_dir: Place | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    baseline: str = "untrained",
    **options: Any,
) -> Results:
    """Probe frozen encoders on the same images, as the workflow of ``configs/evaluate.json`` does.

    Args:
        encoders: a spec of :func:`vivid_monai.evaluation.encoders.load_encoder`; several of them, one per seed; or name
            → spec or specs, to compare encoders on the same images.
        manifest: a manifest, or its file or folder; the test split is tested on.
        output_dir: a new folder for page, tables and probes; None: nothing is written.
        task, fields, source, label_space, window, slices: as of :class:`vivid_monai.evaluation.task.Task`, whose name
            ``task`` is; fields: None: all of the manifest.
        cache_dir, batch_size, num_workers, device: as of :class:`vivid_monai.evaluation.features.FeatureStore`, whose
            root ``cache_dir`` is; device: None: CUDA where there is one.
        baseline: "untrained", "none", or the spec of an encoder to add.
        options: pool, n_examples, seeds, probe, probe_options, train_fraction, min_present, min_absent, n_resamples: as
            of :func:`vivid_monai.evaluation.workflows.run_evaluation`.

    Returns:
        The numbers; printed they are a table.

    Raises:
        VividError: an unknown option; a folder that is used; as of these.
    """
    known = [*_options_of(run_evaluation), *_options_of(evaluate_encoders)]
    own = inspect.signature(evaluate).parameters
    _refuse_unknown("evaluate", options, [*own, *(name for name in known if name not in ("fitted", "keep"))])
    where = None if output_dir is None else Path(output_dir)
    if where is not None:
        refuse_used(where)
    table = _opened(manifest)
    asked = Task(
        name=task,
        manifest=table,
        fields=list(table.fields) if fields is None else fields,
        source=None if source is None else _opened(source),
        label_space=label_space,
        window=window,
        slices=slices,
    )
    store = FeatureStore(
        None if cache_dir is None else Path(cache_dir),
        batch_size=batch_size,
        num_workers=num_workers,
        device=device_of_process() if device is None else device,
    )
    named = encoders if isinstance(encoders, Mapping) else {"encoder": encoders}
    specs = {name: list(map(str, _several(one))) for name, one in named.items()}
    return run_evaluation(asked, store, specs, output_dir=where, baseline=baseline, **options)


def finetune(start: Place, manifest: Data, output_dir: Place, **knobs: Any) -> Results:
    """Fine-tune an encoder, as the workflow of ``configs/finetune.json`` does, in a process of its own.

    Called again with the same words it goes on where it was interrupted, and gives the results of what is done.

    Args:
        start: the encoder, as :func:`vivid_monai.evaluation.encoders.load_encoder` takes it.
        manifest: a manifest, which is then kept in the run's folder, or its file or folder.
        output_dir: folder of the run, which ``load``, ``vivid bundle`` and ``start`` take.
        knobs: options of ``configs/train.json`` and ``configs/finetune.json``, as of docs/finetuning.md.

    Returns:
        The test beside the frozen encoder; printed they are a table.

    Raises:
        VividError: an unknown knob, and the nearest right one; a folder of another run; what the run ended with.
    """
    configs, folder = find_configs().resolve(), Path(output_dir).resolve()
    files = [str(configs / name) for name in ("train.json", "finetune.json")]
    known = ConfigParser()
    known.read_config(files)
    names = [name for name in known.get() if not name.startswith("_")]
    _refuse_unknown("finetune", [name for name in knobs if "#" not in name and "::" not in name], names)
    if not (folder / ASKED).exists():
        refuse_used(folder)
    data = _kept(manifest, folder / "manifest.parquet") if isinstance(manifest, Manifest) else _files(manifest)
    asked = {**knobs, "start": os.fspath(start), "manifest": data}
    said = {name: _word(value) for name, value in asked.items()}
    cell = Cell(f"fine-tuning {folder.name}", str(folder), tuple(files), said, "finetuning")
    cell.ask()
    if failed := run_matrix([cell]):
        if not saves(folder / "checkpoints"):  # other words may mend it
            forget(folder)
            (folder / ASKED).unlink()
        raise VividError(one_line(VividError(failed[cell.name])))
    return Results.load(folder / DONE)


def _several(one: Place | Sequence[Place]) -> Sequence[Place]:
    return [one] if isinstance(one, (str, PathLike)) else one


def _files(data: Place | Sequence[Place]) -> list[str]:
    """The files of manifests that are named by them or by their folders."""
    return [str(manifest_file(Path(one).resolve())) for one in _several(data)]


def _opened(data: Data) -> Manifest:
    return data if isinstance(data, Manifest) else load_manifest(_files(data))


def _kept(manifest: Manifest, path: Path) -> list[str]:
    """Save a manifest in a run's folder, which may hold that one already."""
    new = manifest.save(path.with_name("manifest.new.parquet"))
    if path.exists() and not filecmp.cmp(new, path, shallow=False):
        new.unlink()
        raise VividError(f"{path}: is another manifest than the one that is given; give another output_dir")
    new.replace(path)
    return [str(path)]


def _word(value: Any) -> str:
    """A value as MONAI's command is given it: a text that Fire would read as something else is quoted."""
    text = os.fspath(value) if isinstance(value, PathLike) else str(value)
    return repr(text) if isinstance(value, (str, PathLike)) and DefaultParseValue(text) != text else text


def _options_of(function: Any) -> list[str]:
    """The names that a function takes by their names alone."""
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY]


def _refuse_unknown(function: str, given: Collection[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise VividError(f"{function} has no option {name!r}{did_you_mean(name, known)}")
