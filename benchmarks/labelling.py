"""Labels of new photos: photos per second of a bare loop, in one process, and on Ray.

    python benchmarks/labelling.py RUN FOLDER [--photos 40 160]

The loop has the photos' bytes in memory, labels one after the other (decode, network, CRF, PNG), and writes nothing.
The other two label few and many photos; once they run, a photo costs the difference of the seconds by the difference of
the photos. All of them use every core. The loop is the mean before and after the others.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
import time
from pathlib import Path

from wsseg_ray.datasets.labelled import PHOTO_SUFFIXES
from wsseg_ray.datasets.pixels import encode_mask
from wsseg_ray.labelling import label
from wsseg_ray.networks import open_network, predict_photo

LOOP = 40  # photos of the bare loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory, or a network's file")
    parser.add_argument("folder", type=Path, help="photos")
    parser.add_argument("--photos", type=int, nargs=2, default=[40, 160], metavar=("FEW", "MANY"))
    arguments = parser.parse_args()
    files = sorted(file for file in arguments.folder.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES)
    files = list(itertools.islice(itertools.cycle(files), max(arguments.photos)))
    with tempfile.TemporaryDirectory() as place:
        before = loop(arguments.run, files[:LOOP])
        costs = {
            engine: seconds(arguments.run, files, arguments.photos, engine, Path(place)) for engine in ("local", "ray")
        }
        bare = (before + loop(arguments.run, files[:LOOP])) / 2
    print(f"{'':<12} {'photos/s':>9} {'by the loop':>12} {'of ' + str(arguments.photos[1]) + ' photos, s':>20}")
    print(f"{'bare loop':<12} {1 / bare:9.2f} {1:12.2f}")
    for engine, (photo, whole) in costs.items():
        print(f"{engine:<12} {1 / photo:9.2f} {bare / photo:12.2f} {whole:20.1f}")


def loop(run: str, files: list[Path]) -> float:
    """Seconds that a photo costs."""
    trained, data = open_network(run), [file.read_bytes() for file in files]
    predict_photo(trained, data[0])
    begin = time.perf_counter()
    for photo in data:
        encode_mask(predict_photo(trained, photo))
    return (time.perf_counter() - begin) / len(data)


def seconds(run: str, files: list[Path], counts: list[int], engine: str, place: Path) -> tuple[float, float]:
    """Seconds that a photo costs once it runs, and of the many photos."""
    took = []
    for count in counts:
        folder = place / f"{engine}-{count}"
        folder.mkdir()
        for number, file in enumerate(files[:count]):
            shutil.copy(file, folder / f"{number:06d}{file.suffix}")
        begin = time.perf_counter()
        outcome = label(run, str(folder), str(place / f"labels-{engine}-{count}"), engine=engine)
        took.append(time.perf_counter() - begin)
        assert outcome.labelled == count, outcome.failed
    return (took[1] - took[0]) / (counts[1] - counts[0]), took[1]


if __name__ == "__main__":
    main()
