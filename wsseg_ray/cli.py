"""The command line `wsseg`: parse, call, print.

Exit codes: 0 done, 1 failed, 2 unusable input, 3 done, but some photos could not be processed.

Each command imports its modules when it is called, so that `wsseg --help` is fast.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from wsseg_ray.errors import DatasetError, RecipeError, WeightsError

MOST_TOLD = 20  # photos of which `predict` prints a line

app = typer.Typer(
    name="wsseg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help in boxes takes half a second to import
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a shipped recipe, a YAML file, a folder of photos or its labels")
]
RunDir = Annotated[str | None, typer.Option("--run-dir", help="folder, s3:// or gs://; default runs/RECIPE")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="section.key=value")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="a run directory")]
NetworkName = Annotated[str, typer.Argument(metavar="NETWORK", help="a network of the run, such as SN_B")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for other programs")]
Until = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="stop after this stage")]


@app.callback()
def options(
    no_plugins: Annotated[
        bool,
        typer.Option("--no-plugins", help="refuse any code that comes with a recipe or run, such as somebody else's"),
    ] = False,
) -> None:
    """From photos with image-level labels to a network that labels every pixel."""
    if no_plugins:
        from wsseg_ray.registry import refuse_own_modules

        refuse_own_modules()


@app.command()
def run(recipe: RecipeName, run_dir: RunDir = None, overrides: Overrides = None, until: Until = None) -> None:
    """Run a recipe, or continue it where it stopped."""
    from wsseg_ray import pipeline
    from wsseg_ray.recipe import load, run_name

    place = run_dir or f"runs/{run_name(recipe)}"
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "://" not in place and not Path(place).is_absolute():
        raise RecipeError(f"--run-dir {place}: a job runs in a copy of this folder; give an absolute path or URI")
    outcome = pipeline.run(load(recipe, overrides), place, until)
    print(f"report: {outcome.report}")
    if outcome.failed:
        found = ", ".join(f"{count} in {stage}" for stage, count in outcome.failed.items())
        print(f"some photos could not be processed ({found}); the report's last table says which and why")
        raise typer.Exit(3)


@app.command()
def demo(run_dir: RunDir = None, overrides: Overrides = None) -> None:
    """Run all stages on drawn photos: minutes on two cores."""
    run("demo", run_dir, overrides)


@app.command()
def init(
    photos: Annotated[str, typer.Argument(metavar="PHOTOS", help="a folder of photos, or its URI")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="the file to write")] = Path("recipe.yaml"),
) -> None:
    """Write the recipe `best` for a folder of photos, with a comment for each setting, to change by hand."""
    from wsseg_ray.datasets import layout_of
    from wsseg_ray.datasets.place import Place
    from wsseg_ray.recipe import best_for

    place = Place.at(photos)
    if not place.is_dir():
        raise DatasetError(f"{photos}: there is no such folder")
    if out.exists():
        raise RecipeError(f"{out} is there already; give another file by --out")
    layout = layout_of(place)
    out.write_text(best_for(place.uri))
    print(f"{out}: photos in {photos}, layout {layout}; run it by: wsseg run {out}")


@app.command()
def doctor(recipe: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check that a recipe's data, weights, GPUs and disk space are there."""
    from wsseg_ray.doctor import examine
    from wsseg_ray.recipe import load

    findings = examine(load(recipe, overrides))
    if as_json:
        print(json.dumps([{"name": one.name, "good": one.good, "text": one.text} for one in findings], indent=1))
    for finding in () if as_json else findings:
        print(f"{'ok     ' if finding.good else 'MISSING'}  {finding.name:<10} {finding.text}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(2)


@app.command()
def download(
    dataset: Annotated[str, typer.Argument(help="voc2012")],
    root: Annotated[Path, typer.Option(help="the folder for VOCdevkit")] = Path("data"),
) -> None:
    """Download a data set: voc2012 is VOC 2012 and SBD, about 3.4 GB."""
    from wsseg_ray.datasets.download import voc2012

    if dataset != "voc2012":
        raise DatasetError(f"cannot download '{dataset}'; there is voc2012")
    print(f"dataset.root={voc2012(root, print)}")


@app.command()
def reproduce(
    claim: Annotated[
        str | None, typer.Argument(metavar="NAME", help="a row of the table; none: print the table")
    ] = None,
    root: Annotated[str | None, typer.Option(help="the folder of the claim's data")] = None,
    run_dir: Annotated[str | None, typer.Option(help="a folder; default runs/reproduce/NAME")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="a seed; repeat for several; default: all")] = None,
) -> None:
    """Run a published result again, and say whether it agrees."""
    from wsseg_ray import reproduce as again

    if claim is None:
        print("\n".join(again.table()))
        return
    found = again.reproduce(claim, root, run_dir or f"runs/reproduce/{claim}", seeds, print)
    print(f"{'figure':<24} {'published':>9} {'tolerance':>9} {'now':>6}  seeds")
    for one in found:
        values = ", ".join(f"{value:.1f}" for value in one.values)
        ends = "agrees" if one.agrees else "DOES NOT AGREE"
        published = f"{one.published.value:9.1f} {one.published.tolerance:9.1f}"
        print(f"{one.name:<24} {published} {one.mean:6.1f}  {values}: {ends}")
    if not all(one.agrees for one in found):
        raise typer.Exit(1)


@app.command()
def plan(
    recipe: RecipeName,
    photos: Annotated[float, typer.Option(min=1, help="training photos, as 1e6")],
    cpus: Annotated[float, typer.Option(min=1, help="CPUs of the cluster")],
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of the cluster")] = 0,
    val: Annotated[float | None, typer.Option(min=0, help="val photos; default: all of the data set")] = None,
    sample: Annotated[int, typer.Option(min=64, help="photos per split to measure with")] = 256,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Estimate hours and storage of a run with many photos, and which machines to add first, from a few photos."""
    from wsseg_ray import plan as planning
    from wsseg_ray.choices import settle
    from wsseg_ray.recipe import load

    (loaded, _), there = settle(load(recipe, overrides)), planning.Machines(cpus, gpus)
    costs, here, known = planning.measure(loaded, sample, there)
    count = {"train": int(photos), "val": known if val is None else int(val)}
    usable = there if here.gpus else there._replace(gpus=0)
    found, cautions = planning.estimate(loaded, costs, count, usable), planning.cautions(loaded, here, there)
    if as_json:
        print(json.dumps({"photos": count, "measured_on": here._asdict(), **found, "cautions": cautions}, indent=1))
        return
    print(
        f"measured on {here.cpus:g} CPUs and {here.gpus:g} GPUs; planned: {count['train']} training and "
        f"{count['val']} val photos on {cpus:g} CPUs and {gpus:g} GPUs"
    )
    print("\n".join(planning.table(found)))
    for caution in cautions:
        print(f"caution: {caution}")


@app.command()
def status(
    run: RunArgument,
    watch: Annotated[bool, typer.Option("--watch", help="update every two seconds until the run ends")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a run from its directory; the run can be on another machine."""
    from wsseg_ray.status import is_over, lines, stages
    from wsseg_ray.storage import RunDirectory

    place = RunDirectory.at(run).now()
    if as_json:
        print(json.dumps(stages(place), indent=1))
        return
    while True:
        text = "\n".join(lines(place))
        print(f"\x1b[H\x1b[J{text}" if watch and sys.stdout.isatty() else text, flush=True)
        if not watch or is_over(place):
            return
        time.sleep(2)


@app.command()
def clean(run: RunArgument, yes: Annotated[bool, typer.Option("--yes", help="remove without asking")] = False) -> None:
    """Remove the results that a run's recipe no longer uses, such as those of other settings."""
    from wsseg_ray.cleaning import remove, unused
    from wsseg_ray.engine.stage import open_run
    from wsseg_ray.storage import RunDirectory

    place = open_run(run).run
    found = unused(place)
    if not found:
        print("there is nothing to remove: the recipe uses every result")
        return
    for folder, name in found:
        size = sum(RunDirectory(place.root).sizes(folder, name).values())
        print(f"{folder}/{name}  {size / 1e6:.1f} MB")
    if not yes:
        typer.confirm("remove them?", abort=True)
    remove(place, found)
    print(f"removed {len(found)} result{'s' if len(found) > 1 else ''}")


@app.command()
def replay(
    run: RunArgument,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="a stage that works photo by photo, such as score")],
    photo: Annotated[str | None, typer.Option(metavar="ID", help="the image_id of one photo; default: all")] = None,
) -> None:
    """Compute a stage again from the run's tables, without Ray, and compare. Writes nothing."""
    from wsseg_ray import replay as replaying

    results = []
    for row, differences in replaying.replay(run, stage, photo):
        results.append((row, differences))
        if photo is not None:
            print("\n".join(f"{name}: {_told(value)}" for name, value in vars(row).items()))
    print("\n".join(replaying.summary(stage, results)))
    if any(differences for _, differences in results):
        raise typer.Exit(1)


def _told(value: Any) -> str:
    """A short text for a value of a row."""
    if not hasattr(value, "shape") or not value.shape:
        return str(value)[:100]
    numbers = f", {value.min():.4g} to {value.max():.4g}" if value.size else ""
    return f"{' x '.join(map(str, value.shape))} {value.dtype}{numbers}"


@app.command()
def report(run: RunArgument) -> None:
    """Write a run's metrics.json and report.html again."""
    from wsseg_ray import pipeline

    print(f"report: {pipeline.write_report(run)}")


@app.command()
def proposals(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="a JPEG, PNG, WebP or BMP file")],
    out: Annotated[Path, typer.Option(metavar="PAGE", help="the HTML file to write")],
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="finds boundaries; default: only colour and texture")
    ] = None,
    weights: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="of the backbone; auto: the first there is")
    ] = "auto",
    count: Annotated[int, typer.Option(min=1, help="how many proposals at most")] = 2000,
) -> None:
    """Show the region proposals of one photo on an HTML page."""
    from wsseg_ray.proposal_page import write
    from wsseg_ray.proposals.boundaries import BOUNDARIES

    if out.is_dir() or not out.parent.is_dir():
        raise RecipeError(f"--out {out}: must be a file in a folder that exists")
    if backbone is not None and backbone not in BOUNDARIES.names:
        raise RecipeError(f"--backbone {backbone}: there are {', '.join(BOUNDARIES.names)}")
    write(photo, out, backbone, weights, count)
    print(f"page: {out}")


@app.command()
def predict(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run directory, or a network's .safetensors")],
    photos: Annotated[str, typer.Argument(metavar="PHOTOS", help="a photo, or a folder of photos; a path or a URI")],
    out: Annotated[str, typer.Option(metavar="DIR", help="the folder to write to, a path or a URI")],
    network: Annotated[str | None, typer.Option(metavar="NAME", help="default: the best on val")] = None,
    form: Annotated[str, typer.Option("--format", help="png, overlay, coco, coco_polygons or npz")] = "png",
    engine: Annotated[
        str | None, typer.Option(metavar="ray|local", help="default: ray where RAY_ADDRESS names a cluster, else local")
    ] = None,
) -> None:
    """Label every pixel of new photos with a trained network, or go on with it where it stopped."""
    from wsseg_ray.labelling import label

    told: list[str] = []

    def tell(photo: str, seen: Sequence[str]) -> None:
        told.append(photo)
        if len(told) <= MOST_TOLD:
            print(f"{photo}: {', '.join(seen) or 'background alone'}")

    outcome = label(run, photos, out, network, form, engine, tell)
    for photo, error in list(outcome.failed.items())[:MOST_TOLD]:
        print(f"{photo}: failed: {error}")
    print(f"{outcome.written}: {outcome.labelled} photos, {len(outcome.failed)} failed")
    if outcome.failed:
        raise typer.Exit(3)


@app.command("serve")
def serve_page(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run directory, or a network's .safetensors")],
    network: Annotated[str | None, typer.Option(metavar="NAME", help="default: the best on val")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8800,
) -> None:
    """Show a page on this machine on which one drops a photo and sees its labels."""
    from wsseg_ray.serve import HERE, serve

    print(f"http://{HERE}:{port} (end with Ctrl-C)", flush=True)
    serve(run, network, port)


@app.command()
def export(
    run: RunArgument,
    network: NetworkName,
    out: Annotated[Path, typer.Option(metavar="FILE", help="the file to write")],
    form: Annotated[str, typer.Option("--format", help="safetensors, state_dict, torchscript or onnx")] = "torchscript",
    size: Annotated[str | None, typer.Option(metavar="HxW", help="of the photos, as 300x400; default: any")] = None,
) -> None:
    """Write a trained network as a file with a card (safetensors), or for other programs."""
    from wsseg_ray import networks

    networks.export(run, network, form, out, _size(size) if size else None)
    print(f"{form}: {out}")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise RecipeError(f"--size {text}: needs height and width in pixels, as 300x400")
    return int(height), int(width)


@app.command("recipes")
def list_recipes() -> None:
    """List the shipped recipes."""
    from wsseg_ray.recipe import shipped

    for name, description in shipped().items():
        print(f"{name:<14} {description}")


def main() -> None:
    """Run the command line. Errors that the user can fix print one message, not a traceback."""
    try:
        app()
    except (RecipeError, DatasetError, WeightsError) as error:
        print(f"wsseg: {error}", file=sys.stderr)
        sys.exit(2)
    except (OSError, RuntimeError) as error:
        print(f"wsseg: failed: {error}", file=sys.stderr)
        sys.exit(1)
