"""``vivid init``: the configs of training and evaluation in a folder of one's own."""

import argparse
from pathlib import Path

from vivid_monai.errors import VividError
from vivid_monai.storage.configs import packaged_configs
from vivid_monai.storage.files import whole_file


def add_init(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "A checkout of the project needs it not: its configs are in configs/."
    parser.add_argument("folder", type=Path, metavar="DIR", help="where configs/ goes")
    parser.add_argument("--force", action="store_true", help="replace configs that are there")


def run_init(args: argparse.Namespace) -> int:
    """Lay the configs that python -m monai.bundle run takes in DIR/configs; data/, runs/ and models/ go beside it."""
    source, target = packaged_configs(), args.folder / "configs"
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    if (there := [name for name in files if (target / name).exists()]) and not args.force:
        some = f"{target / there[0]}" + (f" and {len(there) - 1} more files" if len(there) > 1 else "")
        raise VividError(f"{some} would be replaced; give another folder, or --force")
    for name in files:
        with whole_file(target / name) as part:
            part.write_bytes((source / name).read_bytes())
    print(f"{target}: {len(files)} files")
    print(f"\nNext, in {args.folder}: python -m monai.bundle run training --config_file configs/train.json")
    return 0
