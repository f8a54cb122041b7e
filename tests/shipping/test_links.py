"""Links of the documents: the files that they name are there. `make docs` checks headings in its pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def links(text: str) -> list[str]:
    """The targets of Markdown links and pictures, without those of code blocks and of the web."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [link for link in found if not link.startswith(("http://", "https://", "mailto:"))]


def test_links_are_found() -> None:
    assert links("[a](b.md) `[c](d.md)` [e\nf](g.md#h) [i](https://j)") == ["b.md", "g.md#h"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_what_a_document_links_to_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = [
        link for link in links(text) if not (document.parent / link.partition("#")[0]).exists()
    ]
    assert missing == []
