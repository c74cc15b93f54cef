"""The benchmark that keeps the page of results and the demo together."""

import pytest

from benchmarks import demo

METRICS = {
    "networks": {
        name: {"val": {"miou": 40.04 + n, "miou_crf": 50.06 + n}}
        for n, name in enumerate([*demo.COLUMNS, *(f"{column}_unrefined" for column in demo.COLUMNS[:4])])
    }
}


def test_a_table_is_read_as_it_was_written():
    found = demo.table(METRICS)
    assert found["refined"]["AN_A"] == 40.0 and found["refined, CRF"]["FULL"] == 54.1
    assert "FULL" not in found["without refinement"]
    text = demo.written(demo.RESULTS.read_text(), found)
    assert demo.read(text) == found
    rest = [line for line in demo.RESULTS.read_text().splitlines() if line not in demo.lines(found)]
    assert [line for line in text.splitlines() if line in rest][-3:] == rest[-3:]  # what stands behind it stays


@pytest.mark.parametrize(("change", "count"), [(0.1, 0), (-0.1, 0), (0.2, 1)])
def test_a_number_that_drifts_is_named(change, count):
    there, here = demo.table(METRICS), demo.table(METRICS)
    here["refined"]["SN_B"] += change
    assert [off[:2] for off in demo.differences(there, here)] == [("refined", "SN_B")] * count


def test_a_number_that_one_of_them_lacks_is_named():
    there, here = demo.table(METRICS), demo.table(METRICS)
    del here["refined"]["FULL"]
    assert demo.differences(there, here) == [("refined", "FULL", 44.0, None)]


def test_results_hold_the_whole_table():
    found = demo.read(demo.RESULTS.read_text())
    assert list(found) == list(demo.ROWS)
    assert [len(own) for own in found.values()] == [5, 5, 4, 4]
