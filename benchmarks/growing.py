"""A run on a cluster that has no machine for work until it asks for one: Ray's own autoscaler, starting nodes here.

    python -m benchmarks.growing

Starts a head without CPUs whose autoscaler may add two nodes of one CPU (Ray's provider for one machine), runs the demo
on 24 photos up to the rough masks, and prints what the run said, what the autoscaler did, and what it is asked for
afterwards. Takes a minute on two cores.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from benchmarks.kills import command
from wsseg_ray.storage import RunDirectory

PORTS = {"port": 6397, "dashboard-port": 8297, "dashboard-agent-listen-port": 52397}
ADDRESS = f"127.0.0.1:{PORTS['port']}"
CONFIG = {
    "cluster_name": "growing",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "fake_multinode",
        "gcs_address": ADDRESS,
        "launch_multiple": True,
        "disable_node_updaters": True,
        "worker_liveness_check": False,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
}
# What Ray's schema asks for, and nodes on this machine do not need.
CONFIG |= {key: {} for key in ("auth", "docker", "file_mounts")}
CONFIG |= {
    key: []
    for key in (
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "initialization_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "cluster_synced_files",
    )
}
SETTINGS = [
    "dataset.limit=24",
    "hcp.image_epochs=2",
    "hcp.hypothesis_epochs=1",
    "runtime.cluster=[{cpus: 1, count: 2}]",
]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_raylet_start_wait_time_s": "120",
    }
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    with tempfile.TemporaryDirectory(prefix="grow", dir="/tmp") as folder:
        config = Path(folder, "cluster.yaml")
        config.write_text(yaml.safe_dump(CONFIG))
        words = [*ray, "start", "--head", "--block", "--num-cpus=0", "--node-ip-address=127.0.0.1"]
        words += [f"--autoscaling-config={config}", f"--temp-dir={folder}/ray"]
        words += [f"--{name}={port}" for name, port in PORTS.items()]
        head = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            for line in head.stdout:
                if "--block" in line:  # the last thing it says when it is up
                    break
            there = {**environment, "RAY_ADDRESS": ADDRESS}
            run = [*command(RunDirectory.at(f"{folder}/run"), SETTINGS), "--until", "supervise"]
            print("exit code", subprocess.run(run, env=there, stderr=subprocess.STDOUT).returncode, flush=True)
            log = Path(folder, "ray/session_latest/logs/monitor.log").read_text()
            print(*[line for line in log.splitlines() if "event_summary" in line or "Queue" in line], sep="\n")
            status = subprocess.run([*ray, "status"], env=there, capture_output=True, text=True).stdout
            print(status[status.index("From request_resources") :].strip())
        finally:
            for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            head.wait()


if __name__ == "__main__":
    main()
