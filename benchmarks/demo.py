"""Does the demo still print what docs/results/accuracy.md says?

    python benchmarks/demo.py [RUN] [--write]

RUN is a run of the demo that is done; without it the demo is run, in minutes on two cores. Prints the val mIoU of
every network, in the form of the table on that page, and by how much each number differs from that table. The
exit code is 1 where one differs by more than 0.1, as it should not on the machine that made the table; another
processor rounds otherwise, and a training from scratch amplifies it. With `--write` the table is written anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from wsseg_ray import pipeline
from wsseg_ray.recipe import load
from wsseg_ray.report import paper

RESULTS = Path(__file__).parent.parent / "docs/results/accuracy.md"
CEILING, UNREFINED = "FULL", "_unrefined"
COLUMNS = (*paper.NETWORKS, CEILING)
HEAD = "| val mIoU |"
ROWS = {
    "refined": ("miou", ""),
    "refined, CRF": ("miou_crf", ""),
    "without refinement": ("miou", UNREFINED),
    "without refinement, CRF": ("miou_crf", UNREFINED),
}
TOLERANCE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run of the demo that is done")
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = arguments.run or str(Path(folder, "run"))
        if not arguments.run:
            pipeline.run(load("demo"), place)
        found = table(json.loads(Path(place, "metrics.json").read_text()))
    text = RESULTS.read_text()
    off = differences(read(text), found)
    print("\n".join(lines(found)))
    print("\n".join(f"{row}, {column}: the page has {there}, the run {here}" for row, column, there, here in off))
    if arguments.write:
        RESULTS.write_text(written(text, found))
    elif off:
        sys.exit(1)


def table(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The table of a run: row, column, percent to one decimal."""
    found: dict[str, dict[str, float]] = {}
    for row, (key, suffix) in ROWS.items():
        names = {column: metrics["networks"].get(column + suffix) for column in COLUMNS}
        found[row] = {column: round(own["val"][key], 1) for column, own in names.items() if own}
    return found


def lines(found: dict[str, dict[str, float]]) -> list[str]:
    """The table as Markdown."""
    named = [f"{column} (true masks)" if column == CEILING else column for column in COLUMNS]
    body = [f"| {row} | {' | '.join(str(own.get(column, '')) for column in COLUMNS)} |" for row, own in found.items()]
    return [f"{HEAD} {' | '.join(named)} |", "|---" * (1 + len(COLUMNS)) + "|", *body]


def read(text: str) -> dict[str, dict[str, float]]:
    """The table that the page has."""
    found = {}
    for line in text[text.index(HEAD) :].splitlines()[2 : 2 + len(ROWS)]:
        row, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found[row] = {column: float(cell) for column, cell in zip(COLUMNS, cells, strict=True) if cell}
    return found


def written(text: str, found: dict[str, dict[str, float]]) -> str:
    """The page with another table."""
    before, after = text[: text.index(HEAD)], text[text.index(HEAD) :].splitlines()[2 + len(ROWS) :]
    return before + "\n".join([*lines(found), *after]) + "\n"


def differences(
    there: dict[str, dict[str, float]], here: dict[str, dict[str, float]]
) -> list[tuple[str, str, float | None, float | None]]:
    """Row and column of each number that differs by more than TOLERANCE, or that one of the tables lacks."""
    cells = [(row, column) for row in ROWS for column in COLUMNS]
    pairs = [(*cell, there.get(cell[0], {}).get(cell[1]), here.get(cell[0], {}).get(cell[1])) for cell in cells]
    return [p for p in pairs if p[2] != p[3] and (None in p[2:] or abs(p[2] - p[3]) > TOLERANCE + 1e-9)]


if __name__ == "__main__":
    main()
