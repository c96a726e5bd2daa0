"""HTML pages from the jinja2 templates that lie beside the commands. Every value is escaped unless it is Markup."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(name: str, **data: object) -> str:
    """Return a page from a template of this package.

    Args:
        name: the template's path below `commands`, as in "report/page.html.j2".
        data: what the template calls its values.
    """
    return _environment().get_template(name).render(data)


def _sha256(text: str) -> str:
    """Return the SHA-256 of a text in base64, as a content security policy has it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    loader = PackageLoader("sogclr.commands", "")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    found.filters["thousands"] = "{:,}".format
    # Style sheets and scripts are no templates: their braces are their own.
    found.globals["verbatim"] = lambda file: Markup(loader.get_source(found, file)[0])
    # What a page allows a browser to run: this script and no other.
    found.globals["digest"] = lambda file: Markup(_sha256(loader.get_source(found, file)[0]))
    return found
