"""Code blocks of the pages, by language and section."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(page: Path, language: str, section: str = "") -> list[str]:
    """Return the code blocks of a page, or of the section with this heading."""
    text = page.read_text(encoding="utf-8")
    if section:
        _, found, rest = text.partition(f"\n## {section}\n")
        assert found, f"{page.name} has no section {section!r}"
        text = rest.partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def framework(section: str) -> list[str]:
    """Return the Python of a section of docs/frameworks.md."""
    return blocks(ROOT / "docs" / "frameworks.md", "python", section)
