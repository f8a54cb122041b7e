"""The text of a study: what a scalar is, what is given twice, what is no study at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from battery import STUDY, Case, run, study

from gift_ray.study.load import load_study

TITLE = "YAML that reads otherwise than it looks"


def text(content: str | bytes, *overrides: str) -> Callable[[Path], object]:
    """Try a file of this content."""

    def attempt(folder: Path) -> object:
        file = folder / "study.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return run(["immunize", str(file), "--dry-run", *overrides])

    return attempt


def edited(before: str, after: str) -> Callable[[Path], Any]:
    """Try the study's own text with one piece replaced; returns it as read."""

    def attempt(folder: Path) -> Any:
        content = yaml.safe_dump(STUDY | {"output_dir": str(folder / "runs")})
        assert before in content
        (folder / "study.yaml").write_text(content.replace(before, after, 1), encoding="utf-8")
        run(["immunize", str(folder / "study.yaml"), "--dry-run"])
        return load_study(folder / "study.yaml", [])

    return attempt


def holds(
    attempt: Callable[[Path], Any], read: Callable[[Any], Any], value: Any
) -> Callable[[Path], None]:
    """What comes of an attempt has this value, of this very type."""

    def check(folder: Path) -> None:
        found = read(attempt(folder))
        assert (type(found), found) == (type(value), value)

    return check


def name(config: Any) -> Any:
    return config.concepts.malicious[0].name


def override(text: str) -> Callable[[Path], Any]:
    return lambda folder: study(folder, {}, text)


CASES = [
    Case("a concept named `7e7`", edited("name: cat", "name: 7e7"), says="put it in quotes"),
    Case("a concept named `'7e7'`", holds(edited("name: cat", "name: '7e7'"), name, "7e7"),
         outcome="the name is the text 7e7"),
    Case("a concept named `true`", edited("name: cat", "name: true"), says="put it in quotes"),
    Case("a concept named `null`", edited("name: cat", "name: null"), says="put it in quotes"),
    Case("a concept named `42`", edited("name: cat", "name: 42"), says="put it in quotes"),
    Case("a concept named `no`", holds(edited("name: cat", "name: no"), name, "no"),
         outcome="the name is the text no"),
    Case("a concept named `2024-01-01`", holds(edited("name: cat", "name: 2024-01-01"), name, "2024-01-01"),
         outcome="the name is the text 2024-01-01"),
    Case("a concept named `12:30`", holds(edited("name: cat", "name: 12:30"), name, "12:30"),
         outcome="the name is the text 12:30"),
    Case("`mixed_precision: no`",
         holds(edited("name: odd", "model: {mixed_precision: no}\nname: odd"),
               lambda config: config.model.mixed_precision, "no"), outcome="no half precision"),
    Case("`defense.beta=1e-4` on the command line",
         holds(override("defense.beta=1e-4"), lambda config: config.defense.options["beta"], 1e-4),
         outcome="the number 0.0001"),
    Case("`num_images_per_prompt: 010`",
         holds(override("evaluation.num_images_per_prompt=010"),
               lambda config: config.evaluation.num_images_per_prompt, 10), outcome="ten"),
    Case("`beta: .nan`", override("defense.beta=.nan"), says="finite number"),
    Case("`beta: .inf`", override("defense.beta=.inf"), says="finite number"),
    Case("a key given twice", edited("name: odd", "name: odd\nname: even"), says="'name' is given twice"),
    Case("a key given twice inside a part", edited("name: gift", "name: gift\n  name: imma"),
         says="'name' is given twice"),
    Case("an empty file", text(""), says="must be a mapping of settings"),
    Case("a list", text("- a\n- b"), says="must be a mapping of settings"),
    Case("no YAML", text("a: [1, 2"), says="not valid YAML"),
    Case("two documents", text("a: 1\n---\nb: 2"), says="not valid YAML"),
    Case("bytes that are no text", text(b"\xff\xfe\x00name"), says="not valid YAML"),
    Case("a Python object", text("!!python/object/apply:os.system [ls]"), says="not valid YAML"),
    Case("a thousand brackets", text("a: " + "[" * 3000 + "]" * 3000), says="not valid YAML"),
    Case("a part that holds itself", text("defense: &a {name: chain, defenses: [*a]}"),
         says="a part holds itself"),
    Case("anchors that stand for 10^9 values",
         text("\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10 if i else '0')}]" for i in range(10))),
         says="its anchors expand"),
    Case("no such file", lambda folder: run(["sweep", str(folder / "none.yaml")]), says="can't be read"),
    Case("a folder for a file", lambda folder: run(["sweep", str(folder)]), says="can't be read"),
    Case("an override without =", override("defense.beta"), says="write it as dotted.path=value"),
    Case("an override of no place", override("attacks.7.rank=3"), says="no such place"),
    Case("an override that is no YAML", override("seeds=[0"), says="not valid YAML"),
]  # fmt: skip
