"""Write docs/reference.md from the commands' own help: python docs/write_reference.py"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

REFERENCE = Path(__file__).parent / "reference.md"
WIDTH = "76"  # what a column of the site holds without scrolling


def reference() -> str:
    """Return the help of every command, as Markdown."""
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR", "TERM", "FORCE_COLOR")}
    os.environ.update(COLUMNS=WIDTH, NO_COLOR="1", TERM="dumb")
    os.environ.pop("FORCE_COLOR", None)
    try:
        from sogclr.cli import COMMANDS, main

        parts = [
            "# Reference of commands and options",
            "What `sogclr COMMAND --help-all` says; this page is made from it.",
        ]
        for name in COMMANDS:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                main([name, "--help-all"])
            text = "\n".join(line.rstrip() for line in said.getvalue().strip().splitlines())
            parts.append(f"## sogclr {name}\n\n```text\n{text}\n```")
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    print(REFERENCE)
