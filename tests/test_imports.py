"""The floors of the package: a room imports only from the floors below it (docs/architecture.md)."""

import ast
from pathlib import Path

import vivid_monai

PACKAGE = Path(vivid_monai.__file__).parent
ALLOWED = {
    "errors": set(),
    "checks": {"errors"},
    "logs": set(),
    "assets": set(),
    "ums": {"errors", "storage"},
    "storage": {"errors", "checks", "logs"},
    "metrics": {"errors", "logs", "ums"},
    "images": {"errors"},
    "phantom": {"errors", "ums"},
    "data": {"errors", "logs", "storage", "ums", "images"},
    "prepare": {"errors", "logs", "storage", "ums", "images", "phantom", "data"},
    "networks": {"errors", "checks", "logs", "storage", "ums", "metrics", "assets"},
    "engines": {"errors", "checks", "logs", "storage", "ums", "metrics", "images", "data", "networks"},
    "evaluation": {"errors", "checks", "logs", "storage", "ums", "metrics", "images", "data", "networks"},
    "deploy": {"errors", "checks", "logs", "storage", "ums", "metrics", "images", "data", "networks", "evaluation"},
    "commands": {
        "errors",
        "logs",
        "storage",
        "ums",
        "phantom",
        "images",
        "data",
        "prepare",
        "networks",
        "engines",
        "evaluation",
        "deploy",
    },
    "cli": {"errors", "logs", "commands"},
    "api": {"errors", "storage", "images", "data", "engines", "evaluation", "deploy"},
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "vivid_monai" else [node.module]
        rooms |= {name.split(".")[1] for name in names if name.startswith("vivid_monai.")}
    return rooms & set(ALLOWED)


def test_rooms_import_only_downwards():
    wrong = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            assert room in ALLOWED, f"{room} has no floor yet; give it one here and in docs/architecture.md"
            if upward := imported_rooms(path) - ALLOWED[room] - {room}:
                wrong[str(path.relative_to(PACKAGE))] = upward
    assert not wrong


def test_ums_knows_no_torch():
    for path in (PACKAGE / "ums").rglob("*.py"):
        assert "torch" not in path.read_text(), path
