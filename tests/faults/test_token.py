"""A cluster in token mode, as `cluster.yaml` makes it: a job runs with the token, and nothing does without it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import ray  # noqa: F401  (the tests of this file need it)

from wsseg_ray.storage import RunDirectory

ROOT = Path(__file__).parent.parent.parent
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A head in token mode on this machine: the address of its dashboard, and the environment with its token."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**own, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    port, dashboard, agent = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="w", dir="/tmp", ignore_cleanup_errors=True) as folder:
        words = [*RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={port}"]
        words += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
        words += [f"--dashboard-agent-listen-port={agent}"]
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "--block" in line:  # the last thing that it says when it is up
                    break
            yield f"http://127.0.0.1:{dashboard}", environment
        finally:
            for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with suppress(psutil.Error):
                    one.send_signal(signal.SIGKILL)
            process.wait()


def submit(address: str, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [*RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.long
def test_a_job_runs_with_the_token_and_not_without(head, tiny, tmp_path):
    address, environment = head
    words = [word for setting in tiny for word in ("--set", setting)]
    job = [sys.executable, "jobs/pipeline.py", "demo", "--run-dir", f"{tmp_path}/run", "--until", "images", *words]
    stranger = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH")}
    for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        refused = submit(address, {**stranger, "HOME": str(tmp_path), **token}, *job)
        assert refused.returncode != 0, refused.stdout
        assert "401" in refused.stderr + refused.stdout or "oken" in refused.stderr + refused.stdout
    assert not (tmp_path / "run").exists()
    done = submit(address, environment, *job)
    while done.returncode and "No available agent" in done.stdout + done.stderr:  # the head's agent takes some seconds
        done = submit(address, environment, *job)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entry = RunDirectory.at(f"{tmp_path}/run").now().entry("images")
    assert entry is not None and (entry["state"], entry["rows"]) == ("done", 24)
