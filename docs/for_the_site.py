"""Hooks of the site (mkdocs.yml): a page is what it is in the repository, but for two things that only work there."""

import posixpath
import re
from typing import Any

REPOSITORY = "https://github.com/sogclr/sogclr/blob/main/"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page with links that leave docs/ made whole, and without the word that marks code as not run by the tests.

    Args:
        markdown: the page's text.
        page: MkDocs' page, whose file says where it is.
    """
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def whole(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        return link[0] if target.startswith("docs/") else f"]({REPOSITORY}{target})"

    return re.sub(r"\]\((\.\./[^)\s]+)\)", whole, markdown).replace("```python notest", "```python")


def on_post_page(output: str, **_: Any) -> str:
    """Return the page without the mark by which the theme's script would ask GitHub for stars and forks, at every reader's visit.

    Args:
        output: the page's HTML.
    """
    return output.replace(' data-md-component="source"', "")
