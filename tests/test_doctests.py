"""The examples in docstrings of the public interface run as they stand."""

import doctest
import importlib

import pytest

import wsseg_ray

# Settings that make the demo small enough for an example; an example calls them SMALL.
SMALL = [
    "runtime.engine=local",
    "dataset.limit=12",
    "proposals.count=40",
    "hcp.image_epochs=1",
    "hcp.hypothesis_epochs=1",
    "segmentation.epochs=1",
    "segmentation.networks=[SN_B]",
    "segmentation.ablation=false",
    "crf.iterations=2",
]


@pytest.mark.run  # some examples are whole runs
@pytest.mark.parametrize("name", wsseg_ray.__all__)
def test_the_examples_of(name):
    public = getattr(wsseg_ray, name)
    module = importlib.import_module(public.__module__)
    found = doctest.DocTestFinder(recurse=False).find(public, name, globs={**vars(module), "SMALL": SMALL})
    examples = [example for test in found for example in test.examples]
    assert examples or name == "TrainedNetwork", "a public function needs an example"
    runner = doctest.DocTestRunner()
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
