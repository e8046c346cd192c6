"""Small tables in the form of the distributed ones."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
NIH_2020 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def values(table: pd.DataFrame | pd.Series) -> list:
    """The cells of a column, or the rows of a table as dicts; a null is None."""
    plain = table.astype(object)
    plain = plain.where(plain.notna(), None)
    return plain.tolist() if isinstance(plain, pd.Series) else plain.to_dict("records")


def chexpert_row(path: str, *labels: str, sex: str = "Female", age: str = "68", view: str = "Frontal,AP") -> str:
    """A row whose first labels are given and whose others are blank."""
    return ",".join([path, sex, age, view, *labels, *[""] * (14 - len(labels))])


def write_image(path: Path, size: int = 16) -> None:
    """A small PNG or JPEG, black above and white below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize((size, size)).save(path)


@pytest.fixture
def chexpert_root(tmp_path: Path) -> Path:
    """CheXpert-small with 40 patients in train.csv and 2 in valid.csv; the images are there."""
    root = tmp_path / "CheXpert-v1.0-small"
    for part, patients in (("train", range(1, 41)), ("valid", range(60001, 60003))):
        rows = [CHEXPERT_HEADER]
        for patient in patients:
            path = f"{part}/patient{patient:05d}/study1/view1_frontal.jpg"
            write_image(root / path)
            rows.append(chexpert_row(f"CheXpert-v1.0-small/{path}", "1.0" if patient % 2 else "", "", "0.0", "-1.0"))
        (root / f"{part}.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def nih_root(tmp_path: Path) -> Path:
    """ChestX-ray14 with 30 patients in the newer table, images in two numbered folders."""
    root = tmp_path / "nih"
    rows = [NIH_2020]
    for patient in range(1, 31):
        name = f"{patient:08d}_000.png"
        write_image(root / f"images_00{1 + patient % 2}" / "images" / name, size=512)
        labels = "No Finding" if patient % 3 else "Edema|Pleural_Thickening"
        rows.append(f"{name},{labels},0,{patient},{20 + patient},{'MF'[patient % 2]},PA,2682,2749,0.143,0.143")
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(rows) + "\n")
    return root
