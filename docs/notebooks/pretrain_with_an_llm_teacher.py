# %% [markdown]
# # Pretrain with a language model as teacher
#
# Findings become field-state pairs. A frozen language model must state them from the tokens of a Vision Transformer;
# only the transformer and what lies between the two learn. Then the language model is discarded: what ships is the
# ViT with a linear head.
#
# This is the smallest run that shows all parts, under a minute of processor time: generated chest phantoms and a tiny
# teacher that comes with the package. **Far too small to show that it helps**; docs/evidence.md has what was
# measured, with controls.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import monai.bundle
import pandas as pd

import vivid_monai
from vivid_monai.phantom import generate
from vivid_monai.storage.configs import find_configs

work, configs = Path(tempfile.mkdtemp(prefix="vivid-")), find_configs()

# %% [markdown]
# ## What is learned from
#
# An image and its record. A finding is present, absent, uncertain or, where the report says nothing of it, `null`:
# that is not asked, and carries no loss.

# %%
phantom = generate(seed=0, index=7, size=112)
for field, finding in phantom.record.findings.items():
    print(f"{field:28s} {finding.state}")
print(phantom.report)
plt.imsave(work / "phantom.png", phantom.image, cmap="gray")

# %% [markdown]
# ## Pretraining
#
# A workflow of MONAI's bundle: `configs/train.json`, with options. In a shell:
#
#     python -m monai.bundle run training --config_file configs/train.json --max_epochs 2 …
#
# Each step draws four to six findings per image, rare ones more often, and asks the teacher about them.

# %%
small = {
    "dataset_dir": str(work / "phantoms"),
    "phantom_images": 600,
    "image_size": 64,
    "max_epochs": 2,
    "epoch_length": 40,
    "warmup_steps": 10,
    "n_examples": 2,
    "logging_file": False,
}


def pretrain(name: str, *overlays: str) -> Path:
    """Pretrain as configs/train.json says, with overlays after it; the folder of the run."""
    files = [str(configs / one) for one in ("train.json", *overlays)]
    monai.bundle.run(run_id="training", config_file=files, output_dir=str(work / name), **small)
    return work / name


taught = pretrain("taught")

# %% [markdown]
# The table is a linear probe on the frozen encoder after and before pretraining, on patients that neither has seen.
# The run's `report.html` shows the curves and, per example, where the query groups look.
#
# The teacher's loss (NLL) on the validation images is compared with that on the images of others (`shuffled`) and on
# none (`blank`): as long as they are equal, the teacher guesses without looking.

# %%
curves = pd.read_csv(taught / "curves.csv")
print(curves[["step", "train/loss", "val/macro_auroc", "val/nll_own", "val/nll_shuffled", "val/nll_blank"]])

# %% [markdown]
# ## The control
#
# Is it the language model that teaches? `configs/teacher/none.json` puts a small trained classifier of the states in
# its place; all else stays.

# %%
control = pretrain("control", "teacher/none.json")
manifest = vivid_monai.Manifest.load(work / "phantoms" / "manifest.parquet")
encoders = {"language model": str(taught), "classifier": str(control), "thumbnails": "thumbnails:24"}
fields = vivid_monai.load(taught).fields
results = vivid_monai.evaluate(encoders, manifest, fields=fields)
print(results)

# %% [markdown]
# Read the last lines first: where the interval of a difference holds 0, nothing is shown. `vivid compare` does this
# with several seeds, more arms and verdicts (docs/compare.md).
#
# ## Use it
#
# The encoder is one file, without any language model.

# %%
model = vivid_monai.load(taught)
print(model(work / "phantom.png"))
print(model.features(work / "phantom.png").shape)
print((taught / "pretrained_vit.safetensors").stat().st_size / 1e6, "MB")

# %% [markdown]
# Your own data: `vivid prepare table …`, then `configs/data/table.json` after `train.json` (docs/data.md). A larger
# teacher: `configs/teacher/qwen2.5-1.5b.json` with `teacher_path`. The method: docs/method.md.
