"""The plots of the results: SVG that any reader can parse, with the numbers of the claims and pages."""

from xml.etree import ElementTree

import pytest

from benchmarks import drawing, plots
from wsseg_ray.reproduce import claims

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("draw", [plots.photos, plots.compute, plots.proposals, plots.stages])
def test_the_plots_in_docs_are_those_of_today(draw):
    """So a claim that changes changes its picture too: `python benchmarks/plots.py` draws them again."""
    text = draw()
    assert ElementTree.fromstring(text).find(f"{SVG}title") is not None
    assert (plots.PLOTS / f"{draw.__name__}.svg").read_text() == text


def test_a_table_is_read_from_its_page():
    page, heading = "docs/results/proposals.md", "## Beside Selective Search and MCG"
    assert plots.rows_under(page, heading)["MCG"] == [63.8, 72.6, 75.7, 78.1, 42]
    assert plots.rows_under(page, heading, part=2)["MCG"] == [50, 62, 67, 71]


def test_every_claim_says_its_number_of_photos():
    assert all(plots.size(claim) == (claim.photos or 3131) for claim in claims().values() if claim.data)


def test_a_point_lies_where_its_axes_say():
    """The lowest tick is at the bottom left, the highest at the top right."""
    text = drawing.plot({"a": [(0, 10), (4, 20)]}, "x", "y", "title")
    (first, second) = ElementTree.fromstring(text).iter(f"{SVG}circle")
    assert (float(first.get("cx")), float(first.get("cy"))) == (drawing.LEFT, drawing.HEIGHT - drawing.BOTTOM)
    assert (float(second.get("cx")), float(second.get("cy"))) == (drawing.WIDTH - drawing.RIGHT, drawing.TOP)


def test_bars_are_as_long_as_their_numbers():
    text = drawing.bars({"one": {"a": 10, "b": 5}, "two": {"a": 2}}, "<title>")
    widths = [float(bar.get("width")) for bar in ElementTree.fromstring(text).iter(f"{SVG}rect")][2:]
    assert widths == pytest.approx([450, 225, 90])


def test_names_are_escaped():
    assert "<b>" not in drawing.lines([0, 1], {"<b>": [1, 2]}, "<b>", "<b>", "<b>")
