"""Training on Ray Train: the number of workers changes no result."""

import io
import shutil

import torch

from wsseg_ray import pipeline, recipe
from wsseg_ray.tables import RunDirectory

SETTINGS = [
    "segmentation.networks=[AN_A, SN_B, CCNN]",
    "segmentation.ablation=false",
    "segmentation.freeze=all",  # BatchNorm with statistics of its own batch is another function on half of it
    "segmentation.weights=hcp",
    "segmentation.epochs=1",
    "segmentation.batch_size=4",
    "segmentation.crop=129",  # larger than the photos, which differ in size: batches differ in cells
]


def trained(tiny_run, tiny, place, workers: int) -> dict[str, dict[str, torch.Tensor]]:
    shutil.copytree(tiny_run[1].root, place)
    run = RunDirectory.at(str(place))
    settings = [*tiny, *SETTINGS, f"runtime.num_workers={workers}"]
    pipeline.run(recipe.load("demo", settings), run.root, "train_segmenter")
    return {
        name: torch.load(io.BytesIO(run.read_bytes("segmenters", name, "network.pt")), weights_only=True)
        for name in ("AN_A", "SN_B", "CCNN")
    }


def test_three_steps_with_one_and_with_two_workers_give_the_same_weights(tiny_run, tiny, tmp_path):
    one, two = (trained(tiny_run, tiny, tmp_path / f"with-{workers}", workers) for workers in (1, 2))
    for name, weights in one.items():
        for key, tensor in weights.items():
            torch.testing.assert_close(two[name][key], tensor, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")
    assert not torch.equal(one["AN_A"]["fc6.weight"], one["SN_B"]["fc6.weight"])


def test_rounds_of_a_torchvision_network(tiny_run, tiny, tmp_path):
    """Networks learn again from their own labels, CAM once more than others; nothing of it is left behind."""
    shutil.copytree(tiny_run[1].root, tmp_path / "run")
    run = RunDirectory.at(str(tmp_path / "run"))
    settings = [
        *tiny,
        "segmentation.networks=[SN_B, CAM, FULL]",
        "segmentation.ablation=false",
        "segmentation.model=lraspp_mobilenet_v3_large",
        "segmentation.weights=null",
        "segmentation.freeze=all",
        "segmentation.epochs=1",
        "segmentation.rounds=1",
        "prediction={scales: [0.5, 1], mirror: true}",
    ]
    pipeline.run(recipe.load("demo", settings), run.root)
    logs = {name: network["log"] for name, network in run.read_json("metrics.json")["networks"].items()}
    taught = {name: [(entry["round"], entry["epoch"]) for entry in log] for name, log in logs.items()}
    assert taught == {
        "SN_B": [(0, 0), (1, 0)],
        "CAM": [(0, 0), (1, 0), (2, 0)],
        "FULL": [(0, 0)],
    }
    assert all(0 <= entry["waited"] <= 1 for log in logs.values() for entry in log)
    assert run.names("segmenters") == ["CAM", "FULL", "SN_B", "progress.json"]
    assert {name for network in taught for name in run.names("segmenters", network)} == {"log.json", "network.pt"}
    assert "round 2" in run.read_bytes("report.html").decode()
