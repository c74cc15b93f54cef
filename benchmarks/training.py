"""What does Ray cost the training of a segmentation network, and what does a second worker bring?

    python benchmarks/training.py RUN [--network SN_B] [--photos 64] [--epochs 3] [--set segmentation.freeze=none]

RUN is a run that has its supervision; it is not changed. `--photos` training photos, whole shards, are copied to a
run of their own. Three trainings with the same batches in the same order:

    plain    a PyTorch loop in a fresh process, as many threads as the machine has cores, every batch in memory before
             the clock starts
    ray      the stage with one Ray Train worker, the same threads; photos are read, cropped and given their targets
             by Ray Data tasks while it trains
    ray-2    the same with two workers, each with half of the threads (and, with GPUs, one each)

Prints photos a second in each epoch and over all, with the stage's over the loop's; the share of its time that the
trainer waited for photos; how long the stage took with all its starts; the largest difference of the weights from
those of the loop, in units of the largest weight of its tensor; and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from wsseg_ray.engine import training
from wsseg_ray.engine.checkpoints import WEIGHTS, restore
from wsseg_ray.engine.local import columns
from wsseg_ray.engine.ray_runner import ray_runner
from wsseg_ray.engine.schedule import learning_rate_at
from wsseg_ray.engine.stage import Job, open_run
from wsseg_ray.hcp.dropout import mixed
from wsseg_ray.recipe import dump, load
from wsseg_ray.segmentation.network import parameter_groups
from wsseg_ray.stages import segmenters, train_segmenter
from wsseg_ray.stages.feed import Batch, SgdStep, read_batches
from wsseg_ray.storage import RunDirectory
from wsseg_ray.tables import SUPERVISION

FOLDER = segmenters.folder(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory with supervision")
    parser.add_argument("--network", default="SN_B")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the pipeline does
    with tempfile.TemporaryDirectory() as place:
        job = subset(arguments.run, Path(place, "run"), arguments)
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            plain = fresh.submit(plain_loop, job.run.root, arguments.network).result()
        kept = {
            "plain": plain,
            **{f"ray{suffix}": staged(job, arguments.network, n) for n, suffix in ((1, ""), (2, "-2"))},
        }
    show(kept)


def subset(source: str, place: Path, arguments: argparse.Namespace) -> Job:
    """A run with some of the photos of another, up to its supervision."""
    run = open_run(source).run
    overrides = [
        *arguments.set,
        f"segmentation.networks=[{arguments.network}]",
        "segmentation.ablation=false",
        f"segmentation.epochs={arguments.epochs}",
    ]
    place.mkdir()
    recipe = load(str(Path(run.root, "recipe.yaml")), overrides)
    (place / "recipe.yaml").write_text(dump(recipe))
    shutil.copy(Path(run.root, "run.json"), place)
    found, left = RunDirectory.at(str(place)).now(), arguments.photos
    for shard in run.shards("supervision"):
        if left <= 0:
            break
        left -= len(run.read_good(SUPERVISION, shard, []))
        for table in ("images", "proposals", "supervision"):
            found.write_bytes(run.read_bytes(table, f"{shard}.parquet"), table, f"{shard}.parquet")
    if run.exists("hcp", "network.pt"):
        found.write_bytes(run.read_bytes("hcp", "network.pt"), "hcp", "network.pt")
    return open_run(str(place))


def learners(job: Job, name: str) -> training.Index:
    """The photos that a network learns from."""
    index = training.index(job, SUPERVISION)
    return train_segmenter.members(index, segmenters.network_named(job.recipe, name))


def plain_loop(run: str, name: str) -> dict:
    """Seconds of every epoch and the weights of a loop without Ray, its batches in memory."""
    job = open_run(run)
    settings, device = job.recipe.segmentation, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    hcp = restore(job.run, "hcp", "network.pt") if settings.weights == "hcp" else None
    network, fresh = segmenters.build(job.recipe, len(job.classes), hcp)
    network.to(device).train()
    about, kept = segmenters.network_named(job.recipe, name), train_segmenter.KeptFeatures()
    objective = train_segmenter.SegmentationObjective(network, about, 0, kept)
    groups = parameter_groups(network, settings.learning_rate, fresh, settings.weight_decay)
    optimizer = torch.optim.SGD(groups, momentum=settings.momentum)
    bases = [group["lr"] for group in groups]
    members, seconds = learners(job, name), []
    for epoch in range(settings.epochs):
        order = training.epoch_order(members, np.random.default_rng([job.recipe.seed, epoch]))
        steps = []
        for start in range(0, len(order), settings.batch_size):
            places = order.places[start : start + settings.batch_size]
            shards, ids = zip(*(members.photo(place) for place in places), strict=True)
            steps.append(SgdStep(name, 0, epoch, len(steps), shards, ids, len(ids), False, 0))
        rows = list(read_batches(job, columns([asdict(step) for step in steps])))
        begin = time.perf_counter()
        for row in rows:
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = learning_rate_at(epoch, base, settings.decay_every)
            photos, targets = (torch.from_numpy(row[key][0]).to(device) for key in ("photos", "targets"))
            batch = Batch(photos, None, targets, row["numbers"][0].tolist())
            dropout = [mixed(job.recipe.seed, number, epoch) for number in batch.numbers]
            optimizer.zero_grad(set_to_none=False)
            objective(train_segmenter.Shown(batch, dropout)).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - begin)
    photos = len(members)
    return {"photos": photos, "seconds": seconds, "weights": network.cpu().state_dict()}


def staged(job: Job, name: str, workers: int) -> dict:
    """The same of the stage; also the share of time that it waited, and all its seconds."""
    runtime = job.recipe.runtime.model_copy(update={"num_workers": workers})
    job = replace(job, recipe=job.recipe.model_copy(update={"runtime": runtime}))
    job.run.delete(FOLDER)
    os.environ.setdefault("RAY_ADDRESS", "local")
    with ray_runner(Path(job.run.uri("ray.log"))) as runner:
        begin = time.perf_counter()
        train_segmenter.stage(0).do(job, runner)
        everything = time.perf_counter() - begin
    log = segmenters.read_log(job, segmenters.network_named(job.recipe, name))
    return {
        "photos": sum(len(ids) for _, ids in learners(job, name)),
        "seconds": [entry["seconds"] for entry in log],
        "waited": [entry["waited"] for entry in log],
        "all_seconds": everything,
        "weights": restore(job.run, FOLDER, name, WEIGHTS),
    }


def show(kept: dict[str, dict]) -> None:
    reference, found = kept["plain"], {}
    for name, one in kept.items():
        rates = [one["photos"] / seconds for seconds in one["seconds"]]
        whole = one["photos"] * len(rates) / sum(one["seconds"])
        entry = found[name] = {"photos_a_second": whole, "by_epoch": rates}
        entry["over_plain"] = sum(reference["seconds"]) / sum(one["seconds"])
        entry["weights_differ"] = difference(one["weights"], reference["weights"])
        line = f"{name:6} {whole:6.2f} photos/s ({', '.join(f'{rate:.2f}' for rate in rates)} by epoch)"
        line += f", over plain {entry['over_plain']:.3f}, weights differ by {entry['weights_differ']:.1e}"
        if "waited" in one:
            entry |= {"waited": one["waited"], "all_seconds": one["all_seconds"]}
            line += f", waited {', '.join(f'{100 * share:.1f}' for share in one['waited'])} %"
            line += f", {one['all_seconds']:.0f} s with every start"
        print(line)
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), "cuda": torch.cuda.is_available(), **found}))


def difference(weights: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """The largest difference of two state dicts, in units of the largest value of each tensor."""
    return max(
        float((weights[key] - value).abs().max() / value.abs().max().clamp(min=1e-12))
        for key, value in reference.items()
        if value.is_floating_point()
    )


if __name__ == "__main__":
    main()
