"""Write phantoms to disk. As a program, `python -m vivid_monai.data.phantom.write`, it is one of several side by side.

The others are separate programs, not forks: a process that has torch's threads running cannot safely be forked, and
multiprocessing's spawn would start the user's whole program again in every worker.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from vivid_monai.data.phantom.disease import LABEL_SPACE
from vivid_monai.data.phantom.phantom import generate
from vivid_monai.data.records import row_of
from vivid_monai.ums.label_space import load_label_space


def write_images(root: Path, seed: int, size: int, indices: Iterable[int]) -> Iterator[str]:
    """Write each phantom's PNG below `root` and yield its row of the manifest as a line of JSON."""
    space = load_label_space(LABEL_SPACE)
    for index in indices:
        phantom = generate(seed, index, size)
        path = root / phantom.record.image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Level 1: noise hardly compresses, however long one tries.
        Image.fromarray(phantom.image).save(path, compress_level=1)
        yield json.dumps(row_of(phantom.record, space))


if __name__ == "__main__":
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    for line in write_images(folder, settings["seed"], settings["size"], range(*settings["range"])):
        print(line, flush=True)
