# %% [markdown]
# # From a table of your own to a model that answers over HTTP
#
# A table of labels becomes a manifest, an encoder is fine-tuned on it, the run becomes a bundle, and the bundle
# answers: in Python, and as a service. Under a minute of processor time; nothing is downloaded. The images here are
# generated chest phantoms, so no number says anything about patients.
#
# Needs the extra `service` for the last step: `pip install -c constraints.txt -e ".[service]"`.

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx2
import pandas as pd
import torch
from PIL import Image

import vivid_monai
from vivid_monai.cli import main as vivid
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.modules import save_module
from vivid_monai.networks.resnet import ResNet
from vivid_monai.prepare.phantoms import prepare as prepare_phantoms

work = Path(tempfile.mkdtemp(prefix="vivid-"))

# %% [markdown]
# ## The table
#
# What a hospital has: a file, a patient and some labels per image. Ours is made of phantoms; with your own data,
# begin below, at the mapping.

# %%
phantoms = vivid_monai.Manifest.load(prepare_phantoms(work / "phantoms", n=600, size=64))
fields = ["Cardiomegaly", "Pleural Effusion", "Support Devices"]
cells = {"absent": "0", "present": "1", "uncertain": "?", None: ""}
table = pd.DataFrame(
    {"file": record.image.path, "mrn": record.patient_id}
    | {field.lower(): cells[record.findings[field].state] for field in fields}
    for record in phantoms.records()
)
table.to_csv(work / "labels.csv", index=False)
print(table.head())

# %% [markdown]
# ## The mapping, and the manifest
#
# The mapping says which column is what, and which cell means which state. **Decide what a blank means**: here `null`,
# nothing was said, so nothing is learned of it. In a shell, the last line of this cell is
#
#     vivid prepare table labels.csv --mapping map.json --image-root phantoms --out data
#
# It prints the data card: what is in the data, what was left out and why. No patient is in two splits.

# %%
mapping = {
    "mapping_version": "1.0",
    "dataset": "my-hospital",
    "source": "human",
    "image": "file",
    "patient": "mrn",
    "label_columns": {field: field.lower() for field in fields},
    "values": {"1": "present", "0": "absent", "?": "uncertain", "": None},
}
(work / "map.json").write_text(json.dumps(mapping))
options = ["--mapping", work / "map.json", "--image-root", work / "phantoms", "--out", work / "data", "--val", "0.25"]
assert vivid(["prepare", "table", *map(str, [work / "labels.csv", *options])]) == 0

# %%
manifest = vivid_monai.Manifest.load(work / "data" / "manifest.parquet")
for split in ("train", "val", "test"):
    part = manifest.select(split)
    print(split, len(part), "images:", (part.states(fields) == 1).sum(axis=0), "present of", fields)

# %% [markdown]
# ## Fine-tune an encoder
#
# Any encoder is a start: the folder of a pretraining run, `transformers:FOLDER`, `timm:NAME`,
# `torchxrayvision:NAME=FILE` (docs/encoders.md). So that nothing has to be downloaded, ours is a small ResNet with
# fresh weights: use a better one.

# %%
torch.manual_seed(0)
start = work / "start.safetensors"
preprocess = Preprocess(size=64, channels=1, mean=0.5, std=0.25)
save_module(ResNet(img_size=64, depth=10, width=16), start, kind="resnet", preprocess=preprocess.to_dict(), pool="mean")

results = vivid_monai.finetune(start, manifest, work / "run", max_epochs=6, learning_rate=1e-3, layer_decay=1.0)
print(results)

# %% [markdown]
# `fine-tuned` is tested beside `frozen`, a linear probe on the start encoder, on patients that neither has seen.
# Where the interval of the difference holds 0, fine-tuning has shown nothing. The run's `report.html` has curves and
# examples.
#
# Called again, `finetune` goes on where it was interrupted; what is done is not done again.

# %% [markdown]
# ## A bundle
#
# Probabilities are calibrated and thresholds chosen on the validation patients. A finding that could not be told
# apart there is not answered, rather than guessed: the last lines say which. In a shell: `vivid bundle run --out
# my_classification`.

# %%
bundle = work / "my_classification"
assert vivid(["bundle", str(work / "run"), "--out", str(bundle)]) == 0

# %% [markdown]
# ## Answers
#
# In Python, or as tables by `vivid predict IMAGES --bundle my_classification --out answers`.

# %%
images = [item["image"] for item in manifest.select("test").items()][:8]
predictions = vivid_monai.predict(images, bundle)
print(dict(predictions.counts()))
for record in predictions.records():
    print(Path(record.id).name, {field: (one.state, one.score) for field, one in record.findings.items()})

# %% [markdown]
# An image unlike those that the model was trained on is not assessed, and the reason is told:

# %%
(noise := work / "noise").mkdir()
for name, pixels in {"grey": torch.full((64, 64), 128), "noise": torch.randint(0, 256, (64, 64))}.items():
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(noise / f"{name}.png")
for entry in vivid_monai.predict(noise, bundle).entries:
    print(Path(entry.image.path).name, entry.status, entry.reason)

# %% [markdown]
# ## A service
#
# The same answers over HTTP. In a shell: `vivid serve --bundle my_classification --port 8000`, and `curl -F
# file=@chest.png http://127.0.0.1:8000/predict`.

# %%
command = [sys.executable, "-m", "vivid_monai.cli", "serve", "--bundle", str(bundle), "--port", "0"]
service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
try:
    line = service.stdout.readline()
    print(line)
    address = line.split(": ")[0]
    content = Path(images[0]).read_bytes()
    answer = httpx2.post(f"{address}/predict", files={"file": ("chest.png", content)}, timeout=60).json()
finally:
    service.terminate()
    service.wait()
print(json.dumps(answer, indent=1))

# %% [markdown]
# Next: docs/deploy.md (thresholds, DICOM SR, other formats), docs/serving.md (ONNX Runtime, Triton),
# docs/monailabel.md.
