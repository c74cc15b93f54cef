"""How easily the documentation reads: Flesch reading ease of README, docs and public docstrings, per file.

    python tools/reading_ease.py              # the working tree
    python tools/reading_ease.py main HEAD    # two commits, side by side

100 is very easy, 60 to 70 plain English, 30 hard. Code, tables, headings and the targets of links do not count. A mean
is over words, so that a long page counts more.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import textstat

DOCSTRINGS = "docstrings of "  # before the name of a package
PAGES = ("README.md", "docs/*.md", "docs/*/*.md")
# Each is replaced by a space or by one word, in this order
BLOCKS = re.compile(r"^( *)(```|~~~).*?^\1\2 *$|<!--.*?-->", re.MULTILINE | re.DOTALL)
EXAMPLES = re.compile(r"^ *>>> .*(?:\n.+)*", re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)(?:(?: {4}|\t).*\n?)+")
LINES = re.compile(r"^\s*(\||#|!\[).*$", re.MULTILINE)  # tables, headings, pictures
CODE = re.compile(r"`[^`]*`")
LINKS = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
ITEMS = re.compile(r"^\s*(?:[-*]|\d+\.) +", re.MULTILINE)


class Ease(NamedTuple):
    """How a text reads."""

    words: int
    ease: float


def files(commit: str | None) -> dict[str, str]:
    """Pages and modules of a commit, or of the working tree, with their text."""
    if commit is None:
        paths = _git("ls-files", "--cached", "--others", "--exclude-standard").split("\n")
        return {path: Path(path).read_text() for path in paths if _counts(path) and Path(path).exists()}
    paths = _git("ls-tree", "-r", "--name-only", commit).split("\n")
    return {path: _git("show", f"{commit}:{path}") for path in paths if _counts(path)}


def texts(commit: str | None) -> dict[str, str]:
    """The prose of a commit: by page, and by package for docstrings."""
    found: dict[str, str] = {}
    for path, text in files(commit).items():
        if path.endswith(".md"):
            found[path] = prose(text)
            continue
        package = DOCSTRINGS + ("/".join(path.split("/")[:2]) if path.count("/") > 1 else "wsseg_ray")
        said = "\n\n".join(prose(one) for one in docstrings(ast.parse(text)))
        found[package] = f"{found.get(package, '')}\n\n{said}"
    return found


def docstrings(tree: ast.AST) -> Iterator[str]:
    """The docstrings of a module and of its public classes, functions and methods."""
    for node in [tree, *ast.iter_child_nodes(tree)]:
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if getattr(node, "name", "").startswith("_"):
            continue
        if said := ast.get_docstring(node):
            yield said
        if isinstance(node, ast.ClassDef):
            yield from (said for inner in node.body for said in _own(inner))


def prose(text: str) -> str:
    """The sentences of Markdown: each paragraph and each item of a list ends with a full stop."""
    for pattern in (BLOCKS, EXAMPLES, INDENTED, LINES):
        text = pattern.sub(" ", text)
    text = LINKS.sub(r"\1", CODE.sub("code", text))
    paragraphs = (part.strip(" \n*_") for part in re.split(r"\n\s*\n", ITEMS.sub("\n\n", text)))
    return "\n".join(part if part[-1] in ".?!" else f"{part.rstrip(':;,')}." for part in paragraphs if part)


def ease(text: str) -> Ease:
    """Words and Flesch reading ease."""
    words = textstat.lexicon_count(text)
    return Ease(words, textstat.flesch_reading_ease(text) if words else float("nan"))


def mean(found: dict[str, Ease]) -> float:
    """The mean over words of the texts that have any."""
    counted = [one for one in found.values() if one.words]
    return sum(one.words * one.ease for one in counted) / sum(one.words for one in counted)


def _own(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and (said := ast.get_docstring(node)):
        yield said


def _counts(path: str) -> bool:
    return any(fnmatch(path, page) for page in PAGES) or fnmatch(path, "wsseg_ray/*.py")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", help="default: the working tree")
    commits = parser.parse_args().commits or [None]
    found = [{name: ease(text) for name, text in texts(commit).items()} for commit in commits]
    names = sorted({name for one in found for name in one}, key=lambda name: (name.startswith(DOCSTRINGS), name))
    print(f"{'':45}" + "".join(f"{(commit or 'now')[:10]:>12}" for commit in commits))
    for name in names:
        cells = [f"{one[name].ease:12.1f}" if name in one and one[name].words else f"{'':12}" for one in found]
        print(f"{name:45}{''.join(cells)}")
    for kind, wanted in (("pages", False), ("docstrings", True)):
        parts = [{name: one for name, one in all_.items() if name.startswith(DOCSTRINGS) == wanted} for all_ in found]
        print(f"{'mean of ' + kind:45}" + "".join(f"{mean(part):12.1f}" for part in parts))


if __name__ == "__main__":
    main()
