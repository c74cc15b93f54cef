"""A node that is cut off by the network, and goes on working: its late results must harm nobody.

The nodes are network namespaces, which root alone can make; the run lies on a disk that all of them still reach.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.kills import command
from tests.runs import copy, cut_off, same_rows
from wsseg_ray.tables import SCORES

NAME, SUBNET = f"ws{os.getpid() % 10**6}", "10.77.0"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # A lost node is found out in 5 s.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
    # The driver sees in 10 s that a call to that node stays without an answer.
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}

pytestmark = pytest.mark.long


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def network() -> Iterator[list[str]]:
    """A bridge, and two namespaces with a cable to it; their names, which are those of the cables too."""
    names = [f"{NAME}{letter}" for letter in "ab"]
    ip("link", "add", NAME, "type", "bridge")
    try:
        ip("addr", "add", f"{SUBNET}.1/24", "dev", NAME)
        ip("link", "set", NAME, "up")
        for number, name in enumerate(names, 2):
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", NAME, "up")
            ip("-n", name, "addr", "add", f"{SUBNET}.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        ip("link", "del", NAME)


@contextmanager
def node(*words: str, before: tuple[str, ...] = ()) -> Iterator[psutil.Process]:
    """A Ray node in the foreground of a process of its own."""
    ray = shutil.which("ray", path=str(Path(sys.executable).parent))
    assert ray
    own = [*before, ray, "start", "--block", "--disable-usage-stats", "--object-store-memory=150000000", *words]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(own, env={**os.environ, **ENVIRONMENT}, **silent) as one:
        process = psutil.Process(one.pid)
        try:
            yield process
        finally:
            children = process.children(recursive=True)
            for child in [*children, process]:
                with suppress(psutil.NoSuchProcess):
                    child.terminate()
            for child in psutil.wait_procs(children, timeout=20)[1]:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            one.kill()


@contextmanager
def cluster() -> Iterator[tuple[str, dict[str, psutil.Process]]]:
    """The address of a head without CPUs, and a node of one CPU in each namespace, by its name."""
    with network() as names, ExitStack() as stack:
        with socket.create_server((f"{SUBNET}.1", 0)) as free:
            port = free.getsockname()[1]
        address, head = f"{SUBNET}.1:{port}", f"--node-ip-address={SUBNET}.1"
        stack.enter_context(node("--head", head, f"--port={port}", "--num-cpus=0", "--include-dashboard=false"))
        wait_for(address, 1)
        nodes = {}
        for number, name in enumerate(names, 2):
            words = (f"--address={address}", f"--node-ip-address={SUBNET}.{number}", "--num-cpus=1")
            nodes[name] = stack.enter_context(node(*words, before=("ip", "netns", "exec", name)))
            wait_for(address, number)
        yield address, nodes


def wait_for(address: str, count: int) -> None:
    """Until the cluster has so many nodes."""
    for _ in range(20):
        if alive(address) == count:
            return
    raise AssertionError(f"there are {alive(address)} nodes instead of {count}")


def alive(address: str) -> int:
    """Nodes that the cluster has now, 0 where its head does not answer yet."""
    words = "import ray; ray.init(log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"
    environment = {**os.environ, **ENVIRONMENT, "RAY_ADDRESS": address}
    asked = subprocess.run([sys.executable, "-c", words], env=environment, capture_output=True, text=True, check=False)
    return 0 if asked.returncode else int(asked.stdout.split()[-1])


def at_work(process: psutil.Process) -> list[psutil.Process]:
    """A node's processes that work on photos."""
    found = []
    for child in process.children(recursive=True):
        try:
            title = "".join(child.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::Map"):
            found.append(child)
    return found


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("ip"), reason="only root can make network namespaces")
def test_a_node_that_is_cut_off_and_goes_on_harms_nobody(tiny, tiny_local, tmp_path):
    run = copy(tiny_local[1], tmp_path)
    cut_off(run, "score", "scores")
    log = tmp_path / "driver.log"
    with cluster() as (address, nodes), log.open("w") as told:
        words = [*command(run, [*tiny, "runtime.engine=ray"]), "--until", "score"]
        environment = {**os.environ, **ENVIRONMENT, "RAY_ADDRESS": address}
        with subprocess.Popen(words, env=environment, stdout=told, stderr=told) as driver:
            cut: list[psutil.Process] = []
            while driver.poll() is None and not cut:
                for name, process in nodes.items():
                    if cut := at_work(process):
                        ip("link", "set", name, "down")
                        break
            assert driver.wait(400) == 0, log.read_text()
            assert cut
            ip("link", "set", name, "up")
            for process in cut:  # what it still wrote is written
                process.wait(120)
    assert not any(row.error for row in run.rows(SCORES, ["error"]))
    assert len(list(run.rows(SCORES))) == 24 and same_rows(run, tiny_local[1], SCORES)
