"""Write the mapping of the 71 LIDC crops in a folder: each mean rating in nodules.csv with its state.

python scripts/lidc_crops_mapping.py ../shared/data/lidc data/lidc-crops/mapping.json
"""

import csv
import json
import sys
from pathlib import Path

from vivid_monai.ums.label_space import load_label_space


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    state = load_label_space("lidc-malignancy").ratings["Malignancy"].state
    with (folder / "nodules.csv").open(newline="") as table:
        cells = sorted({row["malignancy"] for row in csv.DictReader(table)})
    mapping = {
        "mapping_version": "1.0",
        "dataset": "lidc-crops",
        "source": "human",
        "labeller": "LIDC-IDRI readers, mean",
        "modality": "CT",
        "anatomy": "lung",
        "image": "image",
        "patient": "patient",
        "label_space": "lidc-malignancy",
        "label_columns": {"Malignancy": "malignancy"},
        "values": {cell: state(float(cell)) for cell in cells},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(mapping, indent=2))


if __name__ == "__main__":
    main()
