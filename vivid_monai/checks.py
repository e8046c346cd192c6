"""What a bundle is started with, checked before anything is computed: workflow, options, their values, weights.

MONAI adds an option that no config has to the config, without a word, and computes with the others.

This file goes into every bundle, so that its own workflows are checked as those of this package are.
"""

import inspect
import json
import math
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow
from monai.bundle.scripts import create_workflow, update_kwargs
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from vivid_monai.errors import VividError, cut, did_you_mean, first_line, show_errors_plainly

_COUNTS = (
    "batch_size micro_batch_size epochs max_epochs epoch_length val_interval val_images save_every image_size "
    "patch_size in_channels groups queries teacher_layers teacher_bits min_asked max_asked slices phantom_images "
    "phantom_size embed_dim world_size patience"
)
_AMOUNTS = (
    "seed seeds num_workers warmup_steps min_present min_absent min_positives n_examples n_resamples phantom_seed rank"
)
_SIZES = (
    "learning_rate head_learning_rate projector_learning_rate muon_learning_rate weight_decay layer_decay clip_norm "
    "orthogonality rotate translate scale spacing"
)
_SHARES = "drop_path ema flip rare_probability train_fraction"
LIMITS: dict[str, tuple[type, float, float]] = {
    **dict.fromkeys(_COUNTS.split(), (int, 1, math.inf)),
    **dict.fromkeys(_AMOUNTS.split(), (int, 0, math.inf)),
    **dict.fromkeys(_SIZES.split(), (float, 0, math.inf)),
    **dict.fromkeys(_SHARES.split(), (float, 0, 1)),
}
"""Number → its kind, the least and the most that it may be; every number of a list, and nothing where it is null."""
WORDS = {"min_asked": ("all",), "max_asked": ("all",)}
"""Number → the words that may be in its place."""
SEVERAL_KINDS = ("cache", "mean", "std", "window", "dataset_dir", "manifest", "encoder")
"""Options whose value may be of another kind than the one they have in the configs."""
_NO_WORKFLOWS = ("imports", "initialize", "finalize")
_POINTER = b"version https://git-lfs"
_REFERENCE = re.compile(r"@[\w#:]+")


def running_workflow() -> ConfigWorkflow | None:
    """The bundle's workflow that is running.

    A config cannot name itself in MONAI's language, so the workflow is found among the callers.
    """
    callers = (frame.f_locals.get("self") for frame, _ in traceback.walk_stack(sys._getframe()))
    return next((one for one in callers if isinstance(one, ConfigWorkflow)), None)


def check_options() -> None:
    """Refuse a workflow, an option or a value that the running bundle cannot mean.

    It stands in a config's ``initialize``, and first in its workflows: a stray word of the command replaces the former.
    ``true`` and ``false`` in any case become what they say. Outside of a bundle nothing is checked.

    Raises:
        VividError: what is wrong, and the nearest right name or what is expected.
    """
    if (workflow := running_workflow()) is None:
        return
    if sys.excepthook is sys.__excepthook__:  # nothing of initialize has been done
        show_errors_plainly()
    files, given = _asked()
    _check_workflow(workflow, files)
    if files:
        known = ConfigParser()
        known.read_config(files)
        for key, value in given.items():
            _check_name(key, known, files, workflow)
            _check_value(key, value, known, workflow)
    for name, value in workflow.parser.get().items():
        if expected := _out_of_limits(name, value):
            raise _wrong(name, value, expected)


def _asked() -> tuple[list[str], dict[str, Any]]:
    """The config files of the command, and its options for them; nothing where it was no command of MONAI."""
    for frame, _ in traceback.walk_stack(sys._getframe()):
        if frame.f_code is create_workflow.__code__:
            told = frame.f_locals
            words = update_kwargs(args=told["args_file"], config_file=told["config_file"], **told["kwargs"])
            files = words.get("config_file") or ()
            own = inspect.signature(ConfigWorkflow.__init__).parameters
            tracked = _tracking(words.get("tracking"))
            given = {key: one for key, one in words.items() if key not in own and key not in tracked}
            return [files] if isinstance(files, str) else list(files), given
    return [], {}


def _tracking(settings: str | dict | None) -> frozenset[str]:
    """The options that come with the tracking of experiments."""
    if settings is None:
        return frozenset()
    if isinstance(settings, str) and settings in DEFAULT_EXP_MGMT_SETTINGS:
        settings = DEFAULT_EXP_MGMT_SETTINGS[settings]
    return frozenset(ConfigParser.load_config_files(settings)["configs"]) - {"output_dir"}


def _check_workflow(workflow: ConfigWorkflow, files: list[str]) -> None:
    config, asked = workflow.parser.get(), workflow.run_id
    if stray := [one for one in (workflow.init_id, workflow.final_id) if one not in (*config, *_NO_WORKFLOWS)]:
        raise VividError(
            f"{stray[0]!r} stands alone in the command; write options as --NAME VALUE, and several values as "
            '--NAME "[0,1]"'
        )
    known = [name for name, value in config.items() if name not in _NO_WORKFLOWS and _is_workflow(value)]
    if asked not in known:
        where = f" in {', '.join(files)}" if files else ""
        raise VividError(
            f"there is no workflow {asked!r}{where}{did_you_mean(asked, known)} Workflows: {', '.join(known)}"
        )


def _is_workflow(value: Any) -> bool:
    """A list of expressions; a list of components alone is no workflow, but transforms or handlers."""
    if not isinstance(value, list):
        return False
    expressions = [isinstance(one, str) and one.startswith("$") for one in value]
    return any(expressions) and all(yes or isinstance(one, dict) for yes, one in zip(expressions, value, strict=True))


def _check_name(key: str, known: ConfigParser, files: list[str], workflow: ConfigWorkflow) -> None:
    """An item of the files, or an argument that a component of theirs takes."""
    *above, name = str(key).replace("::", "#").split("#")
    if key in known or (above and above[0] == known.meta_key):
        return
    parent = known.get("#".join(above)) if above else known.get()
    if not above or not isinstance(parent, dict) or "_target_" not in parent:
        names = [one for one in parent if one not in (*_NO_WORKFLOWS, "_desc_")] if isinstance(parent, dict) else []
        nearest = did_you_mean("#".join([*above, name]), ["#".join([*above, one]) for one in names], "--")
        raise VividError(f"there is no option --{key}{nearest} All are items of {', '.join(files)}")
    if name.startswith("_") and name.endswith("_"):  # MONAI's own: _disabled_, _mode_, …
        return
    target = locate(str(ConfigComponent(parent, locator=workflow.parser.locator).resolve_module_name()))
    try:
        takes = inspect.signature(target).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):  # of another library, in C: nobody knows
        return
    if name not in takes and not any(one.kind is one.VAR_KEYWORD for one in takes.values()):
        called = str(parent["_target_"]).rpartition(".")[2]
        nearest = did_you_mean(name, [one for one in takes if one != "self"])
        raise VividError(f"there is no option --{key}: {called} takes no {name}{nearest}")


def _check_value(key: str, value: Any, known: ConfigParser, workflow: ConfigWorkflow) -> None:
    name, default = _followed(key, known)
    if isinstance(value, str) and value[:1] in ("$", "@", "%"):  # MONAI's language: what it means is seen later
        return
    if isinstance(default, bool) and str(value).lower() in ("true", "false"):
        value = workflow.parser[key] = str(value).lower() == "true"
    if isinstance(value, tuple):  # Fire's reading of 0,1,2
        value = workflow.parser[key] = list(value)
    if expected := _out_of_limits(name, value) or _of_another_kind(name, value, default):
        raise _wrong(key, value, expected)


def _wrong(key: str, value: Any, expected: str) -> VividError:
    return VividError(f"{key} is {cut(repr(value), 60)}; it takes {expected}")


def _followed(key: str, known: ConfigParser) -> tuple[str, Any]:
    """The last part of an item's name and what the files say of it, behind references such as "@max_epochs"."""
    value = known.get(key)
    for _ in range(8):
        if not (isinstance(value, str) and _REFERENCE.fullmatch(value)):
            break
        key, value = value[1:], known.get(value[1:])
    return re.split("#|::", key)[-1], value


def _out_of_limits(name: str, value: Any) -> str:
    """What a number that has limits takes instead; nothing where it keeps them."""
    if name not in LIMITS or value is None or value in WORDS.get(name, ()):
        return ""
    if isinstance(value, str) and value[:1] in ("$", "@", "%"):
        return ""
    kind, least, most = LIMITS[name]
    for one in value if isinstance(value, list) else [value]:
        if not _is_number(one, whole=kind is int) or not least <= one <= most:
            what = f"{'a whole number' if kind is int else 'a number'} from {least}"
            return what + (f" to {most}" if most < math.inf else "") + "".join(f", or {w}" for w in WORDS.get(name, ()))
    return ""


def _of_another_kind(name: str, value: Any, default: Any) -> str:
    """What an option takes instead, by what it is in the files; nothing where that is the value's kind, too."""
    if name == "device":
        return _no_device(value)
    word = isinstance(value, str)
    if name.endswith(("_dir", "_path")) and name not in LIMITS and not isinstance(value, (str, list, Path)):
        return f"a path; quote one that looks like a number: --{name} \"'{value}'\""
    if name in SEVERAL_KINDS or default is None or value is None:
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(default, (int, float)):
        whole = isinstance(default, int)
        fine = name in LIMITS or _is_number(value, whole=whole)
        return "" if fine else "a whole number" if whole else "a number"
    if isinstance(default, list):
        numbers = [one for one in default if _is_number(one)]
        if isinstance(value, list) and (not numbers or all(map(_is_number, value))):
            return ""
        return f'a list{" of numbers" if numbers else ""}, such as --{name} "{cut(str(default), 40)}"'
    if isinstance(default, Mapping):
        plain = "_target_" not in default and not isinstance(value, Mapping)
        return "a mapping, such as \"{'key': 1}\"" if plain else ""
    if isinstance(default, str) and default[:1] not in ("$", "@", "%") and not word:
        return f"a word; quote one that looks like something else: --{name} \"'{value}'\""
    return ""


def _is_number(value: Any, *, whole: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return math.isfinite(value)


def _no_device(value: Any) -> str:
    """What to give in place of a device that PyTorch does not have here."""
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        return f"a device of PyTorch that is here: {', '.join(here)} ({cut(first_line(error), 60)})"
    return ""


def refuse_pointers(files: Iterable[str | Path]) -> None:
    """Raise a VividError where a file of weights is only Git LFS's pointer to them."""
    for file in map(Path, files):
        try:
            with file.open("rb") as stream:
                pointer = stream.read(len(_POINTER)) == _POINTER
        except OSError:
            continue  # whoever reads it says so
        if pointer:
            raise VividError(
                f"{file}: is a pointer of Git LFS, not the weights; run `git lfs pull` where it comes from"
            )


def check_labels(datalist: str | Path, fields: Any, outputs: int) -> None:
    """Refuse labels that are not as long as a head has outputs.

    Args:
        datalist: file with the lists "training" and "validation" of ``{"image": …, "label": [1, 0, -1, …]}``.
        fields: names of the findings, where they are the user's own; None: those of the bundle.
        outputs: of the head.

    Raises:
        VividError: fields that are no list of different names, no such file, and the first label of another length.
    """
    if fields is not None:
        names = fields if isinstance(fields, list) else []
        if not names or len({str(name).strip() for name in names} - {""}) != len(names):
            shown = cut(repr(fields), 60)
            raise VividError(f"fields is {shown}; it takes a list of different names: --fields \"['A','B']\"")
    try:
        lists = json.loads(Path(datalist).read_text(encoding="utf-8"))
        rows = [(name, at, row["label"]) for name in ("training", "validation") for at, row in enumerate(lists[name])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VividError(
            f"{datalist}: is no datalist ({type(error).__name__}: {first_line(error)}): give the lists training and "
            'validation of {"image": "path", "label": [1, 0, -1]} (--dataset_dir)'
        ) from error
    for name, at, label in rows:
        if not isinstance(label, list) or len(label) != outputs:
            has = f"{len(label)} values" if isinstance(label, list) else cut(repr(label), 40)
            raise VividError(
                f"{datalist}: the label of {name} image {at} has {has}, and the head {outputs} outputs: give one for "
                f"each{'; for findings of your own: --fields NAMES' if fields is None else ' of the fields'}"
            )
