import json
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from wsseg_ray import pipeline

ROOT = Path(__file__).parent.parent


def test_cluster_yaml_is_what_ray_accepts():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_one_job_a_stage_and_one_for_all():
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == {*pipeline.STAGES, "pipeline"}


@pytest.mark.parametrize("job", [*pipeline.STAGES, "pipeline"])
def test_a_job_is_a_door_to_the_command_line(job, monkeypatch):
    calls = []
    monkeypatch.setattr("wsseg_ray.cli.main", lambda: calls.append(list(__import__("sys").argv[1:])))
    monkeypatch.setattr("sys.argv", ["job", "demo", "--run-dir", "/r"])
    exec(compile((ROOT / "jobs" / f"{job}.py").read_text(), job, "exec"), {"__name__": "__main__"})
    expected = ["run", "demo", "--run-dir", "/r"]
    assert calls == [expected if job == "pipeline" else [*expected, "--until", job]]
