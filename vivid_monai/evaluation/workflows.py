"""Jobs of the bundle: evaluate encoders; finish a pretraining run by linear evaluation."""

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ignite.distributed as idist
import numpy as np
import torch

from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder, VividEncoder, for_task, load_encoder
from vivid_monai.evaluation.evaluate import Evaluated, evaluate, of_datasets
from vivid_monai.evaluation.examples import collect_examples
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.format import datasets_table, summary_table
from vivid_monai.evaluation.probes import AttentiveProbe, LinearProbe, load_probe, save_probe
from vivid_monai.evaluation.report import DATASETS, read_datasets, write_report
from vivid_monai.evaluation.results import Results, write_csv, write_predictions
from vivid_monai.evaluation.task import Task
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import BACKBONES, Classifier
from vivid_monai.networks.modules import fingerprint, load_module, save_module
from vivid_monai.networks.spd import SPD
from vivid_monai.storage.files import made_by_one, whole_file
from vivid_monai.storage.run_config import CONFIG, write_config

logger = logging.getLogger(__name__)

INITIAL, PRETRAINED, SPD_FILE = "initial_vit.safetensors", "pretrained_vit.safetensors", "spd.safetensors"
PACKAGES = ("vivid-monai", "monai", "torch", "transformers", "pytorch-ignite", "numpy", "scikit-learn", "scipy")
FILES = {
    "report.html": "the page to look at: tables, curves, examples; opens without a network",
    "results.json": "the numbers, the command and the versions",
    "metrics.csv": "the same numbers as a table",
    "predictions.csv": "states and probabilities of every test image",
    "probes/": "the fitted probes, to apply elsewhere",
    f"{DATASETS}/": "each data set alone: its page, numbers and predictions",
    "skipped.csv": "training, validation and test images that could not be read",
    "config.json": "the resolved config",
}
TRAINING_FILES = {
    PRETRAINED: "the encoder with its read-out (SPD) and preprocessing; without any LLM{published}",
    "model.pt": "encoder, read-out and head{published}",
    "features/": "the encoder's features of all images, which vivid bundle reads",
    "skipped_in_training.csv": "images that could not be read while the encoder was pretrained",
    "curves.csv, progress.png": "loss, validation AUROC, NLL and learning rates over the steps; drawn with the speed",
    "times.csv": "seconds and images per second over the steps",
}
Specs = str | Sequence[str] | Mapping[str, str | Sequence[str]]


def run_evaluation(
    task: Task,
    store: FeatureStore,
    encoder: Specs,
    *,
    output_dir: str | Path | None,
    baseline: str = "none",
    pool: str | None = None,
    n_examples: int = 6,
    seeds: Sequence[int] = (0,),
    probes: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> Results:
    """Evaluate encoders, write everything about the result and print it: the job of ``configs/evaluate.json``.

    Args:
        task: images and fields.
        store: where features come from.
        encoder: a spec of :func:`~vivid_monai.evaluation.encoders.load_encoder`; several of them, one per seed (as many
            pretraining runs of one recipe); or name → spec or specs, to compare encoders on the same images.
        output_dir: where results go; None: nothing is written or printed.
        baseline: "untrained" adds the first encoder's network as it is before any training; "none" adds nothing;
            anything else is the spec of an encoder to add.
        pool: how tokens become features; None: each encoder's default.
        n_examples: test images that the page shows with the attention maps of SPD; 0 for none.
        probes: name of an encoder → files of linear probes fitted to it, one per seed, such as those of a run's
            ``probes/``, which are tested instead of new ones. Fields that they lack count as not fitted.
        seeds, options: as of :func:`~vivid_monai.evaluation.evaluate.evaluate`.
    """
    specs = named(encoder, taken=() if baseline == "none" else ("untrained", "baseline"))
    longest = max(len(members) for members in specs.values())
    seeds = list(range(longest)) if longest > 1 and list(seeds) == [0] else list(seeds)
    encoders = {name: [load_encoder(spec, pool=pool) for spec in members] for name, members in specs.items()}
    first_specs, first = next(iter(specs.values())), next(iter(encoders.values()))[0]
    if baseline == "untrained" and isinstance(first, VividEncoder):
        fresh = zip(first_specs, seeds, strict=False)
        encoders["untrained"] = [load_encoder(f"untrained:{spec}", pool=pool, seed=seed) for spec, seed in fresh]
    elif baseline == "untrained":
        logger.warning(
            f"No untrained baseline: {first_specs[0]} has no weights; name one with --baseline SPEC, or say --baseline "
            "none"
        )
    elif baseline != "none":
        encoders["baseline"] = [load_encoder(baseline, pool=pool)]
    fitted = {name: _fitted(name, files, encoders, task.fields) for name, files in (probes or {}).items()}
    evaluated = evaluate(encoders, task, store, seeds=seeds, fitted=fitted, **options)
    if output_dir is None:
        return _told(evaluated, task)
    folder = Path(output_dir)
    spd = _spd_of(first, Path(first_specs[0]))
    results = write_evaluation(evaluated, task, folder, shown=first, spd=spd, n_examples=n_examples)
    print_output(results, folder, FILES)
    return results


def _fitted(
    name: str, files: Sequence[str], encoders: Mapping[str, Sequence[Encoder]], fields: Sequence[str]
) -> list[LinearProbe]:
    """The linear probes of files, fitted to the encoders of a name, with a column for each field of a task."""
    if name not in encoders or len(files) != len(encoders[name]):
        raise VividError(f"probes: {name!r} needs an encoder for each of its {len(files)} probes")
    probes = []
    for file, encoder in zip(files, encoders[name], strict=True):
        probe, its = load_probe(file, encoder=encoder.fingerprint())
        if not isinstance(probe, LinearProbe) or probe.exclusive:
            raise VividError(f"{file}: give a linear probe of findings")
        column = {field: i for i, field in enumerate(its) if i not in probe.untrained}
        weight = np.zeros((len(fields), probe.weight.shape[1]), probe.weight.dtype)
        bias = np.zeros(len(fields), probe.bias.dtype)
        for i, field in enumerate(fields):
            if field in column:
                weight[i], bias[i] = probe.weight[column[field]], probe.bias[column[field]]
        untrained = tuple(i for i, field in enumerate(fields) if field not in column)
        probes.append(replace(probe, weight=weight, bias=bias, untrained=untrained))
    return probes


def named(encoder: Specs, *, taken: Sequence[str] = ("untrained", "baseline")) -> dict[str, list[str]]:
    """Specs by name: ``"x.safetensors"`` → ``{"encoder": ["x.safetensors"]}``; ``taken`` are no names for them."""
    by_name = encoder if isinstance(encoder, Mapping) else {"encoder": encoder}
    specs = {name: [one] if isinstance(one, str) else list(one) for name, one in by_name.items()}
    if not specs or not all(one and all(one) for one in specs.values()):
        raise VividError("there is no encoder: give --encoder PATH, or a name and a path for each of several")
    if both := set(taken) & specs.keys():
        raise VividError(f"the name {both.pop()!r} is taken by what --baseline adds: call this encoder otherwise")
    if wrong := [name for name in specs if not name.strip() or set("@:/") & set(name)]:
        raise VividError(f"{wrong[0]!r} cannot name an encoder: leave out @, : and /")
    return specs


def _spd_of(encoder: Encoder, path: Path) -> SPD | None:
    """The SPD that an encoder was pretrained through: of its file or, up to version 0.1, of one beside it."""
    if encoder.spd or not path.is_file():
        return encoder.spd
    file, own = path.with_name(SPD_FILE), load_module(path, BACKBONES).spd
    if own or not file.is_file():
        return own
    saved = load_module(file, {"spd": SPD})
    stored = saved.extra.get("encoder")
    # Files of earlier versions do not name their encoder; there the run's own name for it has to do.
    if stored == fingerprint(encoder.network) if stored else path.name == PRETRAINED:
        return saved.module
    logger.warning(f"No attention maps: {file} was trained with another encoder than {path}")
    return None


def keep_initial(
    network: Classifier, preprocess: Preprocess, output_dir: str | Path, *, spd: SPD | None = None
) -> None:
    """Before training: write the resolved config and the first weights of encoder and read-out; a resumed run has them.

    Arguments are those of :func:`finish_training`.
    """
    path = Path(output_dir) / INITIAL
    if idist.get_rank() == 0 and not path.exists():
        save_encoder(network.encoder, path, preprocess, pool=network.pool, spd=spd)
        write_config(path.parent)


def finish_training(
    network: Classifier,
    *,
    spd: SPD | None,
    task: Task,
    preprocess: Preprocess,
    output_dir: str | Path,
    model_dir: str | Path,
    store: FeatureStore,
    publish: bool = False,
    before: str = "untrained",
    n_examples: int = 6,
    min_present: int = 10,
    min_absent: int = 10,
    n_resamples: int = 1000,
) -> Results | None:
    """After training: fit and test a linear head on the frozen encoder, before and after pretraining; write and print.

    On the main process only.

    Args:
        network: classifier whose encoder, and SPD where it pools by it, is pretrained; gets the fitted head.
        spd: the query groups that its tokens were read through, kept for attention maps whatever the pool; None: it was
            trained without them.
        task, store, n_examples: as of :func:`run_evaluation`; the features of the pretrained encoder stay in the store.
        output_dir: the run's folder, as :func:`keep_initial` began it.
        publish: copy what ships, the encoder and ``model.pt``, to ``model_dir``, where an evaluation takes it from
            (:func:`default_encoder`); otherwise nothing there is touched.
        before: what the encoder before pretraining is called in the results.
        min_present, min_absent, n_resamples: as of :func:`~vivid_monai.evaluation.evaluate.evaluate`.
    """
    if idist.get_rank() != 0:
        return None
    folder, models = Path(output_dir), Path(model_dir)
    initial = load_module(folder / INITIAL, BACKBONES)
    shown, first = (
        VividEncoder(backbone, preprocess, spd=read_out, pool=network.pool, source=str(folder / file))
        for backbone, read_out, file in ((network.encoder, spd, PRETRAINED), (initial.module, initial.spd, INITIAL))
    )
    encoders = {"pretrained": [shown], before: [first]}
    evaluated = evaluate(
        encoders,
        task,
        store,
        keep=["pretrained"],
        min_present=min_present,
        min_absent=min_absent,
        n_resamples=n_resamples,
    )
    head = evaluated.probes["pretrained"][0]
    assert isinstance(head, LinearProbe)
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(head.weight))
        network.head.bias.copy_(torch.from_numpy(head.bias))
    ship(network, spd, folder, preprocess, task.fields)
    try:
        if publish:  # two runs that end together write one after the other: what lies in models/ is of one of them
            with made_by_one(models, f"{models}: another run is writing its models; waiting", option="--bundle_root"):
                ship(network, spd, models, preprocess, task.fields)
    except (OSError, VividError) as error:
        logger.warning(f"{models} cannot be written ({error}): the models are in {folder} alone")
        publish = False
    results = write_evaluation(evaluated, task, folder, shown=shown, spd=spd, n_examples=n_examples)
    published = f"; also in {models}" if publish else ""
    print_output(results, folder, FILES | {name: w.format(published=published) for name, w in TRAINING_FILES.items()})
    return results


def default_encoder(bundle_root: str | Path) -> str:
    """The encoder of an evaluation that names none: the published one, else the newest finished run's; says which.

    Raises:
        VividError: there is neither.
    """
    root = Path(bundle_root)
    if (published := root / "models" / PRETRAINED).is_file():
        logger.info("Evaluated is %s, the published one; another: --encoder FILE, or a run's folder", published)
        return str(published)
    ended = {path.with_name(PRETRAINED): path.stat().st_mtime_ns for path in root.glob("runs/*/*/results.json")}
    runs = [path for path in ended if path.is_file()]
    if not runs:
        raise VividError(
            f"no encoder to evaluate: no {published}, and no finished training in {root / 'runs'}; train one, or name "
            "one with --encoder FILE"
        )
    newest = max(runs, key=lambda path: ended[path])
    logger.info("Evaluated is %s, of the newest finished run; another: --encoder FILE, or a run's folder", newest)
    return str(newest)


def ship(network: Classifier, spd: SPD | None, folder: Path, preprocess: Preprocess, fields: Sequence[str]) -> None:
    """Write what a run ships: the encoder with its read-out, and ``model.pt`` with the head."""
    save_encoder(network.encoder, folder / PRETRAINED, preprocess, pool=network.pool, spd=spd, fields=fields)
    with whole_file(folder / "model.pt") as part:
        torch.save({name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}, part)
    (folder / SPD_FILE).unlink(missing_ok=True)  # of an earlier version's run


def save_encoder(
    backbone: Any,
    path: Path,
    preprocess: Preprocess,
    *,
    pool: str | None,
    spd: SPD | None,
    fields: Sequence[str] | None = None,
) -> None:
    """Write a backbone, what its tokens are read through and how, and its preprocessing as one file."""
    said = {"preprocess": preprocess.to_dict(), "fields": fields}
    save_module(backbone, path, kind=_kind(backbone), spd=spd, pool=pool, **said)  # type: ignore[arg-type]


def _kind(backbone: torch.nn.Module) -> str:
    for kind, known in BACKBONES.items():
        if isinstance(backbone, known):
            return kind
    raise VividError(f"a {type(backbone).__name__} cannot be saved as an encoder; use one of {', '.join(BACKBONES)}")


def write_evaluation(
    evaluated: Evaluated, task: Task, folder: Path, *, shown: Encoder, spd: SPD | None = None, n_examples: int = 6
) -> Results:
    """Write numbers, predictions, probes, examples and the page that shows them; return the results as stored.

    Args:
        shown: the encoder whose example images the page shows, where it is one of images; the first one evaluated.
        spd: the query groups that it was pretrained through, for their attention maps.
        n_examples: how many test images the page shows.
    """
    results = _told(evaluated, task)
    results.save(folder / "results.json")
    _write_predictions(evaluated, folder)
    _write_datasets(evaluated, folder / DATASETS, run=results.run)
    for name, probes in evaluated.probes.items():
        for seed, probe in zip(results.seeds, probes, strict=True):
            if isinstance(probe, LinearProbe | AttentiveProbe):  # others are as large as their training sets
                save_probe(probe, folder / "probes" / f"{name}-{seed}.safetensors", fields=results.fields)
    if n_examples and shown.preprocess.kind == "image":
        items = task.manifest.select("test").items(task.manifest.fields)
        asked = next(iter(evaluated.probes.values()))[0] if task.slices == 1 else None  # an example is one slice
        seen, nothing = for_task(shown, window=task.window), task.manifest.label_space.no_finding
        options: Any = {"probe": asked, "fields": results.fields, "no_finding": nothing}
        examples = collect_examples(seen, items, spd=spd, n=n_examples, **options)
        examples.save(folder / "examples.npz")
    (folder / "skipped.csv").unlink(missing_ok=True)  # of an earlier run into the same folder
    if results.skipped:
        write_csv(folder / "skipped.csv", ("path", "reason", "times"), [(*one, 1) for one in results.skipped])
    if not (folder / CONFIG).exists():
        write_config(folder)
    write_report(folder)
    return results


def _told(evaluated: Evaluated, task: Task) -> Results:
    """The results with what they rest on: command, versions, seconds, data."""
    return replace(evaluated.results, run={**provenance(), "seconds": evaluated.seconds, "data": _data(task)})


def _write_predictions(evaluated: Evaluated, folder: Path) -> None:
    of_test, results = {name: one.test for name, one in evaluated.scored.items()}, evaluated.results
    write_predictions(folder / "predictions.csv", evaluated.test, results.fields, of_test, seeds=results.seeds)


def _write_datasets(evaluated: Evaluated, folder: Path, *, run: Mapping[str, Any]) -> None:
    """A folder for each of several data sets, as that of the whole evaluation, without the encoders' own files."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run into the same folder
    for name, alone in of_datasets(evaluated).items():
        own = folder / quote(name, safe="")
        data = {key: run["data"][key].get(name, {}) for key in ("splits", "card")}  # a union has them by data set
        data |= {"dataset": name, "manifest": run["data"]["manifest"]}
        replace(alone.results, run={**run, "data": data}).save(own / "results.json")
        _write_predictions(alone, own)
        write_report(own)


def print_output(results: Results, folder: Path, files: Mapping[str, str]) -> None:
    print("\n" + summary_table(results))
    if datasets := read_datasets(folder):
        print("\n" + datasets_table(datasets.values()))
    print(f"\nIn {folder}:")
    for name, words in files.items():
        if any((folder / one).exists() for one in name.split(", ")):
            print(f"  {name:28s} {words}")
    print(f"\nNext: open {folder / 'report.html'}; compare runs on the same images: vivid report {folder} OTHER_RUN")


def provenance() -> dict[str, Any]:
    """The command as one can type it again, the versions and the time (UTC, to the second), as stored with results."""
    versions = {"python": ".".join(map(str, sys.version_info[:3])), **{name: version(name) for name in PACKAGES}}
    program = Path(sys.argv[0])
    bundle = program.parts[-3:] == ("monai", "bundle", "__main__.py")
    words = [*(("python", "-m", "monai.bundle") if bundle else (program.name,)), *sys.argv[1:]]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": " ".join(map(_quoted, words)), "versions": versions, "created": created}


def _quoted(word: str) -> str:
    """A word for the shell: in double quotes where it holds single ones, as lists of configs do."""
    return f'"{word}"' if "'" in word and not set('"$`\\!') & set(word) else shlex.quote(word)


def _data(task: Task) -> dict[str, Any]:
    """What the numbers rest on: the data set, how it was split, its card."""

    def datasets(manifest: Manifest) -> str:
        return ", ".join(sorted(set(manifest.table["dataset"].to_pylist())))

    manifest, path = task.manifest, task.manifest.path
    return {
        "dataset": datasets(manifest),
        "source": None if task.source is None else datasets(task.source),
        "splits": manifest.splits,
        "image_root": str(manifest.image_root),
        "manifest": [os.path.abspath(one) for one in path]
        if isinstance(path, list)
        else path and os.path.abspath(path),
        "card": manifest.card,
    }
