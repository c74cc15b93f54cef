"""Requests to an object store, stage by stage: how many a shard costs, and how many a photo.

    python benchmarks/store.py [--photos 96]

Runs the demo's stages one after the other on an S3 server of this machine (moto). Prints for each stage the requests by
their kind, and how many they are per shard and per photo. The requests of a run that has nothing to do are taken off.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections import Counter

import boto3
import ray
from moto.server import ThreadedMotoServer

from wsseg_ray import pipeline, recipe

SETTINGS = [
    "proposals.count=50",
    "hcp.image_epochs=1",
    "hcp.hypothesis_epochs=0",
    "segmentation.epochs=1",
    "segmentation.networks=[AN_B]",
    "segmentation.ablation=false",
]


class Seen(logging.Handler):
    """Counts the requests that the server logs, by their method."""

    def __init__(self) -> None:
        super().__init__()
        self.methods = Counter[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.search(r"\b(GET|PUT|HEAD|POST|DELETE) /", record.getMessage()):
            self.methods[found[1]] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=96)
    photos = parser.parse_args().photos
    seen, log = Seen(), logging.getLogger("werkzeug")
    log.setLevel(logging.INFO)
    log.handlers, log.propagate = [seen], False
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="runs")
    place = f"s3://runs/demo?scheme=http&endpoint_override={host}:{port}"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # once for all stages
    chosen = recipe.load("demo", [*SETTINGS, f"dataset.limit={photos}"])
    print(f"{'stage':<16} {'shards':>6}  {'requests':>8}  {'per shard':>9}  {'per photo':>9}")
    for stage in pipeline.stages_of(chosen):
        pipeline.run(chosen, place, stage.name)
        seen.methods.clear()
        pipeline.run(chosen, place, stage.name)
        idle = seen.methods.copy()
        work(chosen, place, stage, photos, seen, idle)
    server.stop()


def work(chosen: recipe.Recipe, place: str, stage: pipeline.Stage, photos: int, seen: Seen, idle: Counter[str]) -> None:
    """Take a stage back, do it again, and print what it asked of the store."""
    run = pipeline.RunDirectory.at(place).now()
    shards = len(run.shards(stage.writes)) if stage.table else 0
    run.delete(stage.writes)
    seen.methods.clear()
    pipeline.run(chosen, place, stage.name)
    own = seen.methods - idle
    total = own.total()
    per_shard = f"{total / shards:9.1f}" if shards else f"{'':>9}"
    kinds = ", ".join(f"{count} {method}" for method, count in own.most_common())
    print(f"{stage.name:<16} {shards:>6}  {total:>8}  {per_shard}  {total / photos:9.2f}  {kinds}", flush=True)


if __name__ == "__main__":
    main()
