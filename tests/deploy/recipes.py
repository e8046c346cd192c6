"""The code in the README of an exported Hugging Face folder."""

import re
from pathlib import Path


def recipes(folder: Path, heading: str, **files: Path) -> str:
    """The code under a heading, for these files in place of image.png or image.dcm."""
    section = (folder / "README.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    for name, path in files.items():
        assert f'"image.{name}"' in code
        code = code.replace(f'"image.{name}"', repr(str(path)))
    return code
