"""What lies beside NIH's table: the official lists, and the folders of the images."""

from pathlib import Path

from vivid_monai.errors import VividError

LISTS = {"train_val_list.txt": "train_val", "test_list.txt": "test"}


def read_lists(root: Path) -> dict[str, str]:
    """Image name → "train_val" or "test"; empty where there are no lists.

    Raises:
        VividError: one of the two lists is missing, or an image is in both.
    """
    there = [name for name in LISTS if (root / name).is_file()]
    if not there:
        return {}
    if len(there) < len(LISTS):
        absent = next(name for name in LISTS if name not in there)
        raise VividError(
            f"{root / there[0]} is there, but not {absent}: the official split needs both lists, or neither"
        )
    sides: dict[str, str] = {}
    for name, side in LISTS.items():
        try:
            lines = (root / name).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise VividError(f"{root / name}: cannot be read as text: {error}") from error
        both = [image for image in lines if sides.get(image, side) != side]
        if both:
            raise VividError(f"{root}: {len(both)} image(s) are in both official lists: {', '.join(both[:5])}")
        sides |= dict.fromkeys(lines, side)
    return sides


def image_folders(root: Path) -> dict[str, str]:
    """File name → its folder below ``root``: ``images_001/images`` …, ``images_001`` … or ``images``.

    Raises:
        VividError: no such folder, or a name in two of them.
    """
    numbered = sorted(root.glob("images_*"))
    candidates = [root / "images", *(folder / "images" for folder in numbered), *numbered]
    folders = [folder for folder in candidates if folder.is_dir()]
    if not folders:
        raise VividError(
            f"{root}: neither images_001/images … nor images is here; unpack the images, or pass --check none"
        )
    home: dict[str, str] = {}
    for folder in folders:
        place = folder.relative_to(root).as_posix()
        for entry in folder.iterdir():
            if entry.suffix == ".png" and home.setdefault(entry.name, place) != place:
                raise VividError(f"{entry.name} is in {home[entry.name]} and in {place} of {root}: keep one")
    return home
