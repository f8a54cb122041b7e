"""Counts what the table "The house, before and after" of docs/DECISIONS.md says of a package's source.

    python benchmarks/house.py [FOLDER]        # gift_ray by default

A function is counted from `def` to its last line, and `Any` wherever it stands as a name.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from statistics import median


def main(folder: Path) -> None:
    texts = {file: file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.py"))}
    nodes = [(file, node) for file, text in texts.items() for node in ast.walk(ast.parse(text))]
    functions = [
        (node.end_lineno - node.lineno + 1, f"{file.relative_to(folder)}: {node.name}")
        for file, node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    lines, longest = max((len(text.splitlines()), file) for file, text in texts.items())
    modules = Counter(file.stem for file in texts if file.stem != "__init__")
    classes = Counter(node.name for _, node in nodes if isinstance(node, ast.ClassDef))
    source = "\n".join(texts.values())
    entries = [entry for entry in folder.iterdir() if entry.name != "__pycache__"]
    counted = {
        "entries at the top": len(entries),
        "folders among them": sum(entry.is_dir() for entry in entries),
        "files": len(texts),
        "lines": len(source.splitlines()),
        "longest file": f"{lines}, {longest.relative_to(folder)}",
        "longest function": max(functions),
        "median function": median(length for length, _ in functions),
        "modules of one name": [name for name, times in modules.items() if times > 1],
        "classes of one name": [name for name, times in classes.items() if times > 1],
        "uses of Any": sum(isinstance(node, ast.Name) and node.id == "Any" for _, node in nodes),
        "# type: ignore": source.count("# type: ignore"),
        "except Exception": source.count("except Exception"),
    }
    for name, value in counted.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "gift_ray"))
