"""What README says of results stands in the results."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_every_figure_of_readme_is_in_the_results():
    """Numbers with a digit behind the point; those of Python's versions and of the paper's sections are none."""
    text = re.sub(r"Python [\d.]+ to [\d.]+|Sec\. [\d.]+", "", (ROOT / "README.md").read_text())
    results = (ROOT / "RESULTS.md").read_text()
    figures = re.findall(r"\d+\.\d+", text)
    assert len(figures) >= 4 and [one for one in figures if one not in results] == []


def test_every_number_of_photos_in_readme_is_in_the_results():
    """Other whole numbers, such as the pixels of a photo, are no figures."""
    counts = re.compile(r"([\d,]+) (?:photos|true masks)|all ([\d,]+)")
    found = {one or other for one, other in counts.findall((ROOT / "README.md").read_text())}
    results = (ROOT / "RESULTS.md").read_text()
    assert len(found) >= 4 and [one for one in found if not re.search(rf"\b{one}\b", results)] == []


def test_readme_is_short_and_results_are_one_screen():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
    assert len((ROOT / "RESULTS.md").read_text().splitlines()) < 75


def test_every_picture_and_page_that_readme_and_results_name_is_there():
    for page in ("README.md", "RESULTS.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page}: {target}"


def test_every_heading_that_a_page_links_to_is_there():
    """`make docs` checks the pages of the site; this checks README and RESULTS.md, too."""
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            there = (page.parent / target).resolve() if target else page
            assert anchor in headings(there), f"{page.relative_to(ROOT)}: {target}#{anchor}"


def headings(page: Path) -> list[str]:
    """The anchors of a page's headings, as the site names them."""
    if not page.exists():  # made from the code by `make docs`
        return []
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    lines = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return [re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", line).strip().lower()) for line in lines]


def test_every_file_of_the_project_that_a_page_names_is_there():
    named = re.compile(r"`((?:tests|benchmarks|wsseg_ray|tools|jobs|docs|monitoring)/[\w/.-]+\.\w+)(?:::\w+)?`")
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for file in named.findall(page.read_text()):
            assert (ROOT / file).exists(), f"{page.relative_to(ROOT)}: {file}"


def test_the_citation_is_of_this_version_and_of_the_paper_that_readme_names():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert citation["preferred-citation"]["title"] in (ROOT / "README.md").read_text()
