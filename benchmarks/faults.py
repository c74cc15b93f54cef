"""Faults on a cluster of three Ray nodes on this machine: does a stage end with the tables of an undisturbed run?

    python -m benchmarks.faults [--stage STAGE]... [--fault FAULT]... [--photos 288] [--out docs/plots/node.svg]

Draws the demo's photos and runs them once, undisturbed. Then every stage is taken back and run again, on a head without
CPUs and two nodes of one CPU each, once for every fault, which strikes when the stage has done something:

    worker         kill -9 of a process that runs a task; `worker twice`: and of the next one
    actor          kill -9 of the actor, or the trainer; `actor twice`: and of the one that takes its place
    node           a whole node is gone at once, another one comes; `node twice`: and again
    driver         kill -9 of the driver, and the same command again; `driver twice`: killed in the second run too
    object store   two thirds of each node's object store are taken by others
    slow node      every process of one node stands still for five seconds
    full disk      the run's disk is full, the run stops with a message; room is made, and the same command again
    storage        the run is on an object store, which is out of reach for five seconds

Prints a line a trial: rows, rows lost, twice or unlike (trainings: whether the weights are equal bit for bit), seconds
more than undisturbed, and a table. `--out` draws photos done over time, of the undisturbed stage and of each trial, by
the times of their files. `full disk` mounts a tmpfs and needs root; `storage` needs moto[server].
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import ray
from pyarrow import fs
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmarks import drawing
from benchmarks.kills import TABLES, command, differences, same_weights
from tests.faults.proxy import Proxy
from wsseg_ray.datasets import demo
from wsseg_ray.engine.ray_runner import PROGRESS
from wsseg_ray.storage import RunDirectory

FOLDERS = {
    "train_hcp": "hcp",
    "score": "scores",
    "refine": "refined",
    "supervise": "supervision",
    "train_segmenter": "segmenters",
    "predict": "predictions",
}
SETTINGS = [
    "dataset.layout=voc",
    "proposals.count=100",
    "hcp.image_epochs=3",
    "hcp.hypothesis_epochs=2",
    "segmentation.epochs=3",
    "segmentation.networks=[AN_A]",
    "segmentation.ablation=false",
    "runtime.checkpoint_minutes=0",
]
ACTORS = ("MapWorker(", "RayTrainWorker", "TrainWorker")
TASKS = ("Map(", "MapBatches(")
STORE_BYTES = 100 * 2**20  # of each node's object store


class Trial:
    """A run with one stage to do, and the cluster that it is done on.

    Arguments:
        words: the command; None: `wsseg run`, until the stage.
    """

    def __init__(
        self,
        cluster: Cluster,
        run: RunDirectory,
        stage: str,
        settings: Sequence[str] = (),
        words: Sequence[str] | None = None,
    ) -> None:
        self.cluster, self.run, self.stage, self.settings, self.words = cluster, run, stage, settings, words
        self.driver: subprocess.Popen | None = None
        handle, path = tempfile.mkstemp()
        os.close(handle)
        self.log = Path(path)
        self.notes: list[str] = []

    def start(self) -> None:
        environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
        words = self.words or [*command(self.run, self.settings), "--until", self.stage]
        with self.log.open("w") as log:
            self.driver = subprocess.Popen(words, stdout=log, stderr=log, env=environment)

    def end(self) -> int:
        code = self.driver.wait(600)
        if code:
            self.notes.append(self.log.read_text().strip().splitlines()[-1][:200])
        return code

    def wait_until(self, reached: Callable[[], object]) -> object:
        """What `reached` gives when it gives something; None where the driver ends first."""
        while not (found := reached()):
            if self.driver.poll() is not None:
                return None
            time.sleep(0.02)
        return found

    def under_way(self, fault: str = "") -> bool:
        """Whether the stage has done something; where a training is fed by tasks, they have worked by then."""
        table = FOLDERS[self.stage]
        if fault.startswith("worker") and self.stage == "train_segmenter":
            return bool(self.processes(TASKS))
        run = self.run.now()
        if self.stage in ("train_hcp", "train_segmenter"):
            return bool((run.read_json(table, PROGRESS) or {}).get("seen"))
        return bool(run.shards(table))

    def processes(self, names: tuple[str, ...]) -> list[psutil.Process]:
        """Ray's processes on the worker nodes that run what begins with one of these names."""
        found = []
        for node in self.cluster.worker_nodes:
            for process in children(node):
                with suppress(psutil.Error):
                    title = "".join(process.cmdline())
                    if title.startswith(tuple(f"ray::{name}" for name in names)):
                        found.append(process)
        return found

    def kill(self, names: tuple[str, ...], times: int) -> None:
        killed: set[int] = set()
        for _ in range(times):
            victim = self.wait_until(lambda: [p for p in self.processes(names) if p.pid not in killed])
            if victim is None:
                break
            with suppress(psutil.Error):
                victim[0].kill()
            killed.add(victim[0].pid)
        self.notes.append(f"{len(killed)} killed")

    def lose_nodes(self, times: int) -> None:
        for turn in range(times):
            node = self.cluster.worker_nodes and self.busiest()
            self.cluster.remove_node(node, allow_graceful=False)
            add_node(self.cluster)
            self.notes.append("node lost, another added")
            if turn + 1 < times and self.wait_until(lambda: self.processes(ACTORS + TASKS)) is None:
                break

    def busiest(self) -> object:
        """The node whose processes work for the run: losing the other one would prove nothing."""
        at_work = {process.pid for process in self.processes(ACTORS + TASKS)}
        return max(self.cluster.worker_nodes, key=lambda node: sum(p.pid in at_work for p in children(node)))

    def kill_driver(self, times: int) -> None:
        for turn in range(times):
            if turn and self.wait_until(lambda: self.processes(ACTORS + TASKS)) is None:
                break
            self.driver.send_signal(signal.SIGKILL)
            self.driver.wait()
            self.notes.append("driver killed")
            self.start()

    def slow_down(self) -> None:
        stopped = children(self.busiest())
        for process in stopped:
            with suppress(psutil.Error):
                process.suspend()
        time.sleep(5)
        for process in stopped:
            with suppress(psutil.Error):
                process.resume()


def children(node: object) -> list[psutil.Process]:
    """Processes of a node's raylet."""
    try:
        return psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
    except psutil.Error:
        return []


def add_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


@contextmanager
def three_nodes() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES})
    try:
        for _ in range(2):
            add_node(cluster)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def full_object_store(cluster: Cluster) -> Iterator[None]:
    """Two thirds of the store of every node, held by another driver."""
    ray.init(address=cluster.address, log_to_driver=False)
    fill = ray.remote(num_cpus=0)(lambda: np.zeros(STORE_BYTES * 2 // 3, np.uint8))
    held = [
        fill.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"]
    ]
    ray.wait(held, num_returns=len(held), fetch_local=False)
    try:
        yield
    finally:
        del held
        ray.shutdown()


STRIKES: dict[str, Callable[[Trial], None]] = {
    "worker": lambda trial: trial.kill(TASKS, 1),
    "worker twice": lambda trial: trial.kill(TASKS, 2),
    "actor": lambda trial: trial.kill(ACTORS, 1),
    "actor twice": lambda trial: trial.kill(ACTORS, 2),
    "node": lambda trial: trial.lose_nodes(1),
    "node twice": lambda trial: trial.lose_nodes(2),
    "driver": lambda trial: trial.kill_driver(1),
    "driver twice": lambda trial: trial.kill_driver(2),
    "slow node": lambda trial: trial.slow_down(),
}
FAULTS = (*STRIKES, "object store", "full disk", "storage")


def applies(stage: str, fault: str) -> bool:
    """`refine` and `supervise` have no actors; nothing but trainers works in `train_hcp`."""
    if fault.startswith("actor"):
        return stage not in ("refine", "supervise")
    return not (fault.startswith("worker") and stage == "train_hcp")


def disturbed(
    whole: RunDirectory, place: Path, stage: str, fault: str, settings: list[str], reference: RunDirectory
) -> dict:
    """One trial: a stage of a run again, with a fault; what it left against what it left undisturbed."""
    shutil.copytree(whole.root, place)
    run = RunDirectory.at(str(place)).now()
    run.delete(FOLDERS[stage])
    run.write_entry({"state": "running"}, FOLDERS[stage])
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}  # of the S3 server on this machine
    with three_nodes() as cluster:
        trial = Trial(cluster, run, stage, settings)
        begin, at = time.monotonic(), time.time()
        if fault == "object store":
            with full_object_store(cluster):
                trial.start()
                code = trial.end()
        elif fault == "full disk":
            with small_disk(trial, place) as filler:
                trial.start()
                trial.end()
                filler.unlink()
                trial.start()
                code = trial.end()
        elif fault == "storage":
            with away_for_a_while(trial, place):
                code = trial.end()
        else:
            trial.start()
            if fault in STRIKES and trial.wait_until(lambda: trial.under_way(fault)):
                STRIKES[fault](trial)
            code = trial.end()
        seconds = time.monotonic() - begin
        folder, left = FOLDERS[stage], trial.run.now()
        written = sorted(file.stat().st_mtime - at for file in (place / folder).rglob("*.parquet"))
        if stage.startswith("train"):
            parts = (folder,) if stage == "train_hcp" else (folder, "AN_A")
            rows = left.entry(folder)["worked"]  # photos, over all epochs: 0 where nothing was trained
            found = {"rows": rows, "unlike": int(not same_weights(reference, left, parts))}
        else:
            table = next(table for table in TABLES if table.folder == folder)
            found = dict(zip(("rows", "unlike"), differences(reference, left, table), strict=True))
        failed = len(left.read_json("failures", f"{stage}.json") or [])
        notes = "; ".join(trial.notes)
        return {**found, "failed": failed, "code": code, "seconds": seconds, "notes": notes, "written": written}


def photos_over_time(trial: dict) -> list[tuple[float, float]]:
    """Seconds since a trial began, and the photos whose shard was written by then."""
    shards = len(trial["written"])
    return [(second, trial["rows"] * number / shards) for number, second in enumerate(trial["written"], 1)]


@contextmanager
def small_disk(trial: Trial, place: Path) -> Iterator[Path]:
    """The run on a disk of its own that a file fills; yields that file."""
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) + 2**27
    away = place.with_name(f"{place.name}-disk")
    place.rename(away)
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        shutil.copytree(away, place, dirs_exist_ok=True)
        filler = place / "filler"
        with suppress(OSError), filler.open("wb") as stream:
            while True:
                stream.write(bytes(2**12))
        with filler.open("r+b") as stream:  # room for a few small files, so that the stage begins
            stream.truncate(filler.stat().st_size - 2**16)
        yield filler
        shutil.rmtree(away)
        shutil.copytree(place, away)
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        place.rmdir()
        away.rename(place)


@contextmanager
def away_for_a_while(trial: Trial, place: Path) -> Iterator[None]:
    """The run on an S3 server, out of reach for five seconds when the stage is under way.

    The bucket is new: what an earlier trial left on such a server is still there, as servers of moto share their store.
    """
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    proxy, bucket = Proxy(server._server.port), f"runs-{uuid.uuid4().hex}"
    query = f"?scheme=http&endpoint_override=127.0.0.1:{proxy.port}&allow_bucket_creation=true"
    store = fs.FileSystem.from_uri(f"s3://{bucket}{query}")[0]
    store.create_dir(bucket)
    fs.copy_files(str(place), f"{bucket}/run", source_filesystem=fs.LocalFileSystem(), destination_filesystem=store)
    shutil.rmtree(place)  # so that all that the trial leaves comes from the store
    trial.run = RunDirectory.at(f"s3://{bucket}/run{query}")

    def cut() -> None:
        if trial.wait_until(trial.under_way):
            proxy.close()
            trial.notes.append("storage away for 5 s")
            time.sleep(5)
            proxy.open = True

    trial.start()
    threading.Thread(target=cut, daemon=True).start()
    try:
        yield
    finally:
        fs.copy_files(f"{bucket}/run", str(place), source_filesystem=store, destination_filesystem=fs.LocalFileSystem())
        trial.run = RunDirectory.at(str(place))
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", action="append", choices=FOLDERS, dest="stages")
    parser.add_argument("--fault", action="append", choices=FAULTS, dest="faults")
    parser.add_argument("--photos", type=int, default=288)
    parser.add_argument("--out", type=Path, help="where the picture goes, an SVG; for one stage that writes a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demo.draw(Path(folder) / "photos", 0, arguments.photos)
        settings = [*SETTINGS, f"dataset.root={folder}/photos", f"dataset.limit={arguments.photos}"]
        whole = RunDirectory.at(f"{folder}/whole")
        subprocess.run(command(whole, settings), check=True, env={**os.environ, "RAY_ADDRESS": "local"})
        whole = whole.now()
        print("| stage | fault | rows | lost, twice or unlike | failed | seconds more | what happened |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for stage in arguments.stages or FOLDERS:
            # The same on the three nodes, undisturbed: torch has other threads there, which round otherwise.
            place, reference = Path(folder) / "disturbed", Path(folder) / f"undisturbed-{stage}"
            base = disturbed(whole, place, stage, "none", settings, whole)
            curves = {"undisturbed": photos_over_time(base)}
            place.rename(reference)
            for fault in arguments.faults or FAULTS:
                if not applies(stage, fault):
                    continue
                found = disturbed(whole, place, stage, fault, settings, RunDirectory.at(str(reference)).now())
                code = f"exit code {found['code']}; " if found["code"] else ""
                words = [stage, fault, found["rows"], found["unlike"], found["failed"]]
                words += [f"{found['seconds'] - base['seconds']:.0f}", code + found["notes"]]
                print(f"| {' | '.join(map(str, words))} |", flush=True)
                curves[fault] = photos_over_time(found)
                shutil.rmtree(place)
            if arguments.out:
                title = f"{stage}, two nodes of one CPU"
                arguments.out.write_text(drawing.plot(curves, "seconds", "photos done", title, joined=True))


if __name__ == "__main__":
    main()
