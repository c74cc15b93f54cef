import json
import re
import shlex
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.runs import settled
from wsseg_ray import pipeline, recipe
from wsseg_ray.engine import ray_runner
from wsseg_ray.engine.resources import Node, check

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cluster_yaml() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def manifest() -> dict:
    return next(yaml.safe_load_all((ROOT / "rayjob.yaml").read_text()))


def test_cluster_yaml_is_what_ray_accepts(cluster_yaml):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster_yaml, schema)
    filled = prepare_config(cluster_yaml)  # Ray's own code, as `ray up` calls it
    validate_config(filled)
    kinds = filled["available_node_types"]
    assert filled["head_node_type"] == "head" and kinds["head"]["resources"] == {"CPU": 0}
    assert all(kinds[kind]["min_workers"] == 0 < kinds[kind]["max_workers"] for kind in ("cpu", "gpu"))
    assert kinds["cpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_a_cluster_keeps_its_worker_processes_as_a_machine_alone_does(cluster_yaml):
    (kept,) = [f"{name}={value}" for name, value in ray_runner.ENVIRONMENT.items() if "idle_worker" in name]
    assert f"-e {kept}" in cluster_yaml["docker"]["run_options"]
    assert f"ENV {kept}" in (ROOT / "Dockerfile").read_text().splitlines()  # the image of rayjob.yaml


def test_nobody_without_the_token_reaches_a_cluster(cluster_yaml, manifest):
    """Every process of both clusters is in token mode, and no dashboard of `ray up` is open to a network."""
    assert "-e RAY_AUTH_MODE=token" in cluster_yaml["docker"]["run_options"]
    assert cluster_yaml["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    head = " ".join(cluster_yaml["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "0.0.0.0" not in head
    spec = manifest["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    _, policy = yaml.safe_load_all((ROOT / "rayjob.yaml").read_text())
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert chosen <= group["template"]["metadata"]["labels"].items()
    assert policy["kind"] == "NetworkPolicy" and policy["spec"]["policyTypes"] == ["Ingress"]
    assert all(rule["from"] for rule in policy["spec"]["ingress"]), "a rule without `from` lets everybody in"


def test_every_recipe_fits_on_the_cluster(cluster_yaml):
    assert any("[gpu,timm]" in command for command in cluster_yaml["setup_commands"]), "`best` has a backbone of timm"
    kinds = [kind for kind in cluster_yaml["available_node_types"].values() if "max_workers" in kind]
    nodes = [Node(kind["resources"]["CPU"], kind["resources"].get("GPU", 0), 0, kind["max_workers"]) for kind in kinds]
    for name in recipe.shipped():
        loaded = settled(name)
        check(loaded, pipeline.stages_of(loaded), nodes)


def test_both_clusters_have_the_ray_of_the_project(cluster_yaml, manifest):
    with (ROOT / "pyproject.toml").open("rb") as file:
        (wanted,) = [line for line in file.read().decode().splitlines() if '"ray[' in line]
    version = ray.__version__
    assert f">={version.rsplit('.', 1)[0]}," in wanted
    assert version in cluster_yaml["docker"]["image"] and manifest["spec"]["rayClusterSpec"]["rayVersion"] == version


def test_the_kuberay_manifest_has_the_same_machines(cluster_yaml, manifest):
    spec = manifest["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] and spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        kind = cluster_yaml["available_node_types"][group["groupName"]]
        assert (group["minReplicas"], group["maxReplicas"]) == (kind["min_workers"], kind["max_workers"])
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert {"CPU": int(limits["cpu"]), "GPU": int(limits.get("nvidia.com/gpu", 0))} == {"GPU": 0} | kind[
            "resources"
        ]
    words = shlex.split(manifest["spec"]["entrypoint"])
    assert words[:3] == ["wsseg", "run", "paper-voc12"]
    grows = recipe.load("paper-voc12", [word for word in words if "=" in word]).runtime.cluster
    assert [(kind.cpus, kind.gpus, kind.count) for kind in grows] == [(16, 0, 8), (8, 1, 4)]


def test_the_grafana_page_asks_for_metrics_that_there_are():
    page = json.loads((ROOT / "monitoring" / "grafana.json").read_text())
    queries = [panel["targets"][0]["expr"] for panel in page["panels"]]
    asked = {name for query in queries for name in re.findall(r"ray_(wsseg_\w+)", query)}
    counters, gauges = ({name for name, _ in part.values()} for part in (ray_runner.COUNTERS, ray_runner.GAUGES))
    assert asked <= {f"{name}_total" for name in counters} | gauges
    assert {name.removesuffix("_total") for name in asked} >= (counters | gauges) - {"wsseg_busy_seconds"}


@pytest.mark.parametrize("words", [[], ["--until", "score"]])
def test_a_job_is_a_door_to_the_command_line(words, monkeypatch):
    """One job for all stages, or with `--until` for the first ones."""
    (job,) = (ROOT / "jobs").glob("*.py")
    calls = []
    monkeypatch.setattr("wsseg_ray.cli.main", lambda: calls.append(sys.argv[1:]))
    monkeypatch.setattr("sys.argv", ["job", "demo", "--run-dir", "/r", *words])
    exec(compile(job.read_text(), job.name, "exec"), {"__name__": "__main__"})
    assert calls == [["run", "demo", "--run-dir", "/r", *words]]
