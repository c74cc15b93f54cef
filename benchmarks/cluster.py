"""The demo as a job on a cluster that loses a machine: a transcript, and what the monitoring says meanwhile.

    python -m benchmarks.cluster [--prometheus /usr/bin/prometheus] [--set key=value]...

On this machine, with real Ray nodes: a head without CPUs and two nodes of one CPU; `ray job submit` of the demo; when
`score` is under way one node is killed at once and another one comes. At the end the tables are compared with those of
an undisturbed run. With `--prometheus`, a Prometheus scrapes the nodes, and every query of `monitoring/grafana.json`
is put to it while the job runs. Prints commands and what they printed; ends what it started, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.kills import tables_compared
from wsseg_ray.datasets import demo
from wsseg_ray.storage import RunDirectory

ROOT = Path(__file__).parent.parent
GCS, DASHBOARD, PROMETHEUS, AGENT = 6391, 8291, 9391, 52391
SMALL = ["hcp.image_epochs=6", "hcp.hypothesis_epochs=2", "segmentation.epochs=2", "segmentation.networks=[AN_A, SN_B]"]


class Machines:
    """Ray nodes on this machine, each the processes of one `ray start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "RAY_AUTH_MODE": "token", "PYTHONUNBUFFERED": "1"}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment.pop("RAY_ADDRESS", None)
        self.nodes: list[list[psutil.Process]] = []

    def say(self, *words: str) -> None:
        print("$ " + " ".join(words), flush=True)

    def start(self, *words: str) -> None:
        """`ray start`, and which processes it left."""
        before = self._rays()
        words += (f"--dashboard-agent-listen-port={AGENT + len(self.nodes)}",)  # others may run here
        self.say("ray", "start", *words)
        subprocess.run(
            ["ray", "start", *words, "--disable-usage-stats"],
            env=self.environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.nodes.append([psutil.Process(pid) for pid in self._rays() - before])

    def kill(self, number: int) -> None:
        for process in self.nodes[number]:
            with suppress(psutil.Error):
                for child in process.children(recursive=True):
                    child.kill()
                process.kill()

    def call(self, *words: str) -> str:
        self.say(*words)
        done = subprocess.run(words, env=self.environment, cwd=ROOT, capture_output=True, text=True)
        return (done.stdout + done.stderr).strip()

    def popen(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            words, env=self.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def _rays(self) -> set[int]:
        found = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.folder) in " ".join(process.cmdline()):
                    found.add(process.pid)
        return found


@contextmanager
def machines(folder: Path) -> Iterator[Machines]:
    made = Machines(folder)
    try:
        yield made
    finally:
        for number in range(len(made.nodes)):
            made.kill(number)


@contextmanager
def prometheus(binary: str | None, folder: Path) -> Iterator[None]:
    """A Prometheus that scrapes the nodes, as Ray's own configuration says."""
    if binary is None:
        yield
        return
    config = folder / "session_latest" / "metrics" / "prometheus" / "prometheus.yml"
    words = [f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=:{PROMETHEUS}"]
    with subprocess.Popen([binary, *words], stderr=subprocess.DEVNULL) as server:
        try:
            yield
        finally:
            server.terminate()


def ask_prometheus() -> None:
    """Every query of the Grafana page, and what it answers now."""
    dashboard = json.loads((ROOT / "monitoring" / "grafana.json").read_text())
    for panel in dashboard["panels"]:
        query = panel["targets"][0]["expr"].replace("$run", ".*")
        address = f"http://127.0.0.1:{PROMETHEUS}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(address) as answer:
            found = json.loads(answer.read())["data"]["result"]
        values = [f"{'/'.join(r['metric'].values()) or 'all'} {float(r['value'][1]):.4g}" for r in found]
        print(f"  {panel['title']}: {', '.join(values[:8]) or 'no data'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", help="the binary; without it nothing is scraped")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="wsseg-", dir="/tmp"))
    demo.draw(folder / "photos", 0, None)
    settings = [*SMALL, "dataset.layout=voc", f"dataset.root={folder}/photos", *arguments.settings]
    words = [word for setting in settings for word in ("--set", setting)]
    run, whole = (RunDirectory.at(str(folder / name)) for name in ("run", "undisturbed"))
    try:
        with machines(folder / "ray") as nodes:
            nodes.start(
                "--head",
                "--num-cpus=0",
                f"--port={GCS}",
                f"--dashboard-port={DASHBOARD}",
                f"--temp-dir={folder}/ray",
            )
            for _ in range(2):
                nodes.start(f"--address=127.0.0.1:{GCS}", "--num-cpus=1")
            with prometheus(arguments.prometheus, folder / "ray"):
                submit = ["ray", "job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD}", "--working-dir", "."]
                submit += ["--", "python", "jobs/pipeline.py", "demo", *words, "--run-dir"]
                nodes.say(*submit, run.root)
                job = nodes.popen(*submit, run.root)
                while not run.now().shards("scores"):
                    if job.poll():  # the head's job agent takes some seconds to come
                        job = nodes.popen(*submit, run.root)
                    time.sleep(0.1)
                print(nodes.call("wsseg", "status", run.root))
                print("# kill -9 of everything on the second node")
                nodes.kill(1)
                nodes.start(f"--address=127.0.0.1:{GCS}", "--num-cpus=1")
                while job.poll() is None and not run.now().exists("segmenters", "progress.json"):
                    time.sleep(0.5)
                if arguments.prometheus:
                    time.sleep(25)  # two scrapes
                    print("# what the panels of monitoring/grafana.json get from Prometheus")
                    ask_prometheus()
                print(nodes.call("wsseg", "status", run.root))
                print("# what `ray job submit` showed")
                print(job.communicate()[0].strip())
                print(f"# exit code {job.returncode}")
                # On the same nodes: torch has other threads elsewhere, which round otherwise.
                nodes.popen(*submit, whole.root).communicate()
        print("# the tables, and those of an undisturbed run")
        tables_compared(whole.now(), run.now())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
