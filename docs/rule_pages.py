"""Makes a page for each rule while the documentation is built, as `bnfold rule` prints it."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from bnfold.audit import RULES
from bnfold.reports.rule_page import markdown


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add `rules/BN103.md` and its like to what is built."""
    for rule in RULES:
        path = f"rules/{rule.code}.md"
        files.append(File.generated(config, path, content=markdown(rule)))
    return files
