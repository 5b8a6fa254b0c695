"""Builds the documentation: sphinx-build -W --keep-going docs build/site.

The pages are Markdown that can be read in a clone as it is: links lead to files that are there. Two
things are therefore made while the site is built. Navigation follows the lists in index.md, which
are its only source. And a link to a Markdown file outside of this folder, such as the page of a
rule, leads to the page that is made from that file.
"""

import os
import posixpath
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from bnfold import __version__, api
from bnfold.audit import RULES
from bnfold.reports.rule_page import markdown

project = "bnfold"
copyright = "the bnfold authors"  # noqa: A001 - Sphinx reads this name
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
]

html_theme = "furo"
html_title = "bnfold"
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
exclude_patterns = ["_*"]
highlight_language = "text"
# What a config with "head/*" looks like in a help text is no markup, and neither is `.keras`.
default_role = "code"
smartquotes = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False  # many sites make theirs with scripts
linkcheck_ignore = [r"https?://localhost"]

# Pages from files that live elsewhere: name of the page, the file, and the text if it is not all.
MIRRORED = {
    "changelog": ("CHANGELOG.md", None),
    "contributing": (".github/CONTRIBUTING.md", None),
    "security": (".github/SECURITY.md", None),
    **{
        f"rules/{rule.code}": (f"bnfold/audit/pages/{rule.code}.md", markdown(rule))
        for rule in RULES
    },
}
PAGE_OF = {file: page for page, (file, _) in MIRRORED.items()}
"""The page that is made from a file, by the file's path in the repository."""

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")
"""A relative link: the path in it, without the anchor."""
ENTRY = re.compile(r"^- \[([^]]+)\]\(([^)#]+)\)(?:: )?(.*(?:\n  \S.*)*)", re.MULTILINE)


def links_of_the_site(text: str, file: str, page: str) -> str:
    """The text of a file of the repository whose links lead from page to page.

    Args:
        text: Markdown.
        file: where it is in the repository, to which its links are relative.
        page: the name of its page, such as `rules/BN103`.
    """

    def led(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), found[1]))
        inside = PAGE_OF.get(target, target.removeprefix("docs/").removesuffix(".md"))
        if target not in PAGE_OF and not target.startswith("docs/"):
            return found[1]
        ending = Path(target).suffix
        start = posixpath.dirname(page) or "."
        return posixpath.relpath(inside + (ending if ending == ".md" else ""), start)

    return LINK.sub(led, text)


def write_mirrored(app: Sphinx) -> None:
    """Write the pages that are made from other files, where they changed."""
    for page, (file, made) in MIRRORED.items():
        path = DOCS / f"{page}.md"
        text = links_of_the_site(made or (ROOT / file).read_text("utf-8"), file, page)
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def read_page(app: Sphinx, page: str, content: list[str]) -> None:
    """Have the links of a page lead to pages, and give the first page its cards and navigation."""
    if page not in MIRRORED:
        content[0] = links_of_the_site(content[0], f"docs/{page}.md", page)
    if page == "index":
        content[0] = navigation(content[0])
    if page == "decisions/index":
        content[0] += "\n".join(["", *tree(found[1] for found in ENTRY.findall(content[0]))])
    if page == "rules":
        content[0] += "\n".join(["", *tree(f"rules/{rule.code}" for rule in RULES)])


def navigation(index: str) -> str:
    """The first page with a card for each entry of its lists, and a tree for each list."""
    first, *parts = re.split(r"^(?=## )", index, flags=re.MULTILINE)
    trees = []
    for number, part in enumerate(parts):
        caption = part.partition("\n")[0].removeprefix("## ")
        pages = [
            f"{title} <{target.removesuffix('.md')}>" for title, target, _ in ENTRY.findall(part)
        ]
        trees += tree(pages, f":caption: {caption}")
        parts[number] = cards(part)
    return "\n".join([first + "".join(parts), *trees])


def tree(pages: Iterable[str], *options: str) -> list[str]:
    """The lines that have pages in the navigation."""
    return ["```{toctree}", ":hidden:", *options, "", *pages, "```", ""]


def cards(part: str) -> str:
    """A part of the first page with its list as cards."""
    made = "".join(
        f":::{{grid-item-card}} {title}\n:link: {target.removesuffix('.md')}\n:link-type: doc\n"
        f"{text}\n:::\n"
        for title, target, text in ENTRY.findall(part)
    )
    heading, _, rest = part.partition("\n")
    before = ENTRY.split(rest)[0].strip()
    return f"{heading}\n\n{before}\n\n::::{{grid}} 1 2 2 3\n:gutter: 2\n\n{made}::::\n\n"


def read_help(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Have the examples of a help text look as they are typed: no asterisk in them is markup."""
    text = "\n".join(lines).replace("| Examples:", "Examples::\n")
    lines[:] = re.sub(r"(?m)^\|(?=   )", "", text).split("\n")


def read_signature(app: Sphinx, what: str, *found: Any) -> tuple[str | None, str | None]:
    """Have functions name their types of samples and paths, and results say what they have only."""
    *_, signature, result = found
    if what == "class":
        return "", None
    for name in ("Data", "FilePath"):
        spelt = stringify_annotation(getattr(api, name), "smart")
        signature = signature and signature.replace(spelt, name)
    return signature, result


def setup(app: Sphinx) -> None:
    """Connect what is made while the site is built."""
    os.environ.setdefault("COLUMNS", "80")
    app.connect("builder-inited", write_mirrored)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-signature", read_signature)
    app.connect("sphinx-click-process-description", read_help)
