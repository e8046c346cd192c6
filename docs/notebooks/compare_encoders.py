# %% [markdown]
# # Compare encoders on the same images
#
# Which features tell your findings apart? Encoders of any origin are frozen, each with the preprocessing of its
# weights; a linear probe is fitted on the same training images, its penalty chosen on the same validation images, and
# both are measured on the same test patients. Half a minute of processor time; nothing is downloaded. The images are
# generated chest phantoms and the weights are random, so no number says anything about these networks: put yours in
# their place.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
import transformers

import vivid_monai
from vivid_monai.evaluation.encoders import load_encoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.modules import save_module
from vivid_monai.networks.vit import ViT
from vivid_monai.prepare.phantoms import prepare as prepare_phantoms

work = Path(tempfile.mkdtemp(prefix="vivid-"))

# %% [markdown]
# ## The images
#
# A manifest of your own comes from `vivid prepare` (docs/data.md).

# %%
manifest = vivid_monai.Manifest.load(prepare_phantoms(work / "phantoms", n=600, size=64))
fields = ["Cardiomegaly", "Edema", "Pleural Effusion", "Support Devices"]
print(len(manifest), "images of", len(set(manifest.patients())), "patients")

# %% [markdown]
# ## The encoders
#
# A string names each of them (docs/encoders.md). Two are made here as they would lie on your disk: one of this
# package, a file such as `runs/phantom/001/pretrained_vit.safetensors`, and a DINOv2 of transformers, a folder with
# its `preprocessor_config.json`. Thumbnails, the pixels of a small copy of the image, are what any encoder has to be
# better than.

# %%
torch.manual_seed(0)
own = Preprocess(size=64, channels=1, mean=0.5, std=0.25).to_dict()
vit = ViT(img_size=64, patch_size=16, preset="nano", stem="conv", positions="sincos")
save_module(vit, work / "vit.safetensors", kind="vit", preprocess=own, pool="cls+mean")

shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
transformers.Dinov2Model(transformers.Dinov2Config(**shape)).save_pretrained(work / "dinov2")
transformers.ViTImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(work / "dinov2")

encoders = {
    "ours": str(work / "vit.safetensors"),
    "DINOv2": f"transformers:{work / 'dinov2'}",
    "thumbnails": "thumbnails:24",
}

# %% [markdown]
# ## Features
#
# What a probe sees is an array: use it for retrieval, clusters or a model of your own.

# %%
x = vivid_monai.features(manifest.select("test"), encoders["ours"])
print(x.shape, x.dtype)
encoder = load_encoder(encoders["DINOv2"], pool="mean")
print(encoder.describe())

# %% [markdown]
# ## The comparison
#
# The first encoder is compared with every other one; intervals are over patients, and those of the differences are
# paired. With `output_dir` the page, every prediction and the probes are written; without, nothing is.

# %%
results = vivid_monai.evaluate(
    encoders, manifest, work / "compared", fields=fields, baseline="none", cache_dir=work / "features"
)

# %% [markdown]
# That table is what `print(results)` shows, too. **A difference whose interval holds 0 shows nothing.** All numbers
# are rows of one long table:

# %%
rows = pd.DataFrame(results.rows)
mean = rows[(rows.metric == "auroc") & rows.seed.isna() & (rows.minus == "")]
print(mean.pivot(index="field", columns="encoder", values="value").round(3))

# %%
macro = mean[mean.field == "(macro)"]
figure, axes = plt.subplots(figsize=(5, 2))
axes.errorbar(macro.value, macro.encoder, xerr=[macro.value - macro.low, macro.high - macro.value], fmt="o")
axes.axvline(0.5, color="grey", linestyle=":")
axes.set_xlabel("macro AUROC of the test patients, 95 % interval")
figure.savefig(work / "auroc.png", bbox_inches="tight")

# %% [markdown]
# ## With few labels
#
# The same probes on a quarter of the training patients, drawn by three seeds. Features come from the cache.

# %%
few = vivid_monai.evaluate(
    encoders,
    manifest,
    fields=fields,
    baseline="none",
    train_fraction=0.25,
    seeds=[0, 1, 2],
    cache_dir=work / "features",
)
print(few)

# %% [markdown]
# Several pretraining runs of one recipe are one encoder with a list of files: `{"ours": ["run-0.safetensors",
# "run-1.safetensors"]}`, one for each seed. `probe="attentive"`, `"knn"` or `"published"` are other read-outs
# (docs/probes.md), `source=` another hospital to learn on. `vivid compare` also trains what it compares
# (docs/compare.md).
