"""How good is `wsseg plan`? What it says of runs of several sizes, beside what they then take.

    python benchmarks/planning.py RECIPE [--photos 50 200 800] [--sample 256] [--set key=value]...

Measures once, on this machine; plans each size for this machine; runs each size. Prints seconds planned and taken, of
every stage and of all stages together.
"""

from __future__ import annotations

import argparse
import tempfile

from wsseg_ray import pipeline, plan, recipe
from wsseg_ray.storage import RunDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--photos", type=int, nargs="+", default=[50, 200, 800])
    parser.add_argument("--sample", type=int, default=256)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    loaded = recipe.load(arguments.recipe, arguments.settings)
    costs, here, val = plan.measure(loaded, arguments.sample)
    for name, cost in costs.items():
        print(
            f"{name:<16} {cost.fixed:6.1f} s, {cost.a_shard:.3f} s a shard, {cost.seconds:.4f} s a unit; "
            f"{cost.work:.2f} units a photo",
            flush=True,
        )
    for count in arguments.photos:
        planned = plan.seconds(loaded, costs, {"train": count, "val": min(count, val)}, here)
        with tempfile.TemporaryDirectory() as folder:
            pipeline.run(
                recipe.load(arguments.recipe, [*arguments.settings, f"dataset.limit={count}"]), f"{folder}/run"
            )
            stages = RunDirectory.at(f"{folder}/run").read_json("metrics.json")["stages"]
            taken = {name: stages[name]["seconds"] for name in planned}
        print(f"\n{count} photos: {'stage':<16} {'planned s':>10} {'taken s':>10} {'planned / taken':>16}")
        for name, seconds in [*planned.items(), ("all", sum(planned.values()))]:
            real = taken.get(name, sum(taken.values()))
            print(f"{'':>11}{name:<16} {seconds:10.1f} {real:10.1f} {seconds / real:16.2f}", flush=True)


if __name__ == "__main__":
    main()
