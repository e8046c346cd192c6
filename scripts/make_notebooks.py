"""Write docs/notebooks/*.ipynb, without outputs, from the scripts beside them.

    python scripts/make_notebooks.py

Needs the extra `notebooks`. The scripts are in the percent format of Jupytext, run as they are, and are what is edited.
"""

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def notebook_of(script: Path) -> str:
    """The notebook of a script as the text of its file: the same bytes each time."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(KERNEL)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.py")):
        made = path.with_suffix(".ipynb")
        made.write_text(notebook_of(path), encoding="utf-8")
        print(made)
