"""Learn the proposal generator's three perceptrons from the human segments of BSDS500, and write `perceptrons/`.

    python benchmarks/train_proposals.py --plain --weights VGG16.pth
    python benchmarks/train_proposals.py --backbones timm:tf_efficientnet_lite2

Every network learns from what the ones before it say of photos that they did not learn from (four folds), and is then
learned once more from all 200 photos. No mask of an object is read: segments of BSDS are what a person saw as parts
of a photo, grass and sky among them. What counts as an object here is geometry: a segment that two people agree on
(IoU 0.7), of 200 pixels to half the photo, on at most two of its sides.

Takes about 27 minutes and 8 GB on one core with VGG-16 and `--plain`. Prints, of the photos left out, the precision of
contours and how well objects are found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.io import loadmat
from sklearn.metrics import average_precision_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from wsseg_ray.backbones.base import BaseBackbone
from wsseg_ray.evaluation.objects import best_iou
from wsseg_ray.proposals import combinations, hierarchies, ranking
from wsseg_ray.proposals.boundaries import BOUNDARIES, Boundary, BoundaryFinder
from wsseg_ray.proposals.boundaries.hypercolumn import boundary, load, outputs
from wsseg_ray.proposals.generate import cut
from wsseg_ray.proposals.learned import PLAIN, Layers, perceive

FOLDS = 4
PIXELS = 2500  # a photo, of which half lie on a boundary and a fifth within 4 px of one
HIDDEN = 32
CANDIDATES = 300, 400  # a photo, for the ranking: the best ones, and others at random
MIN_OBJECT = 200  # pixels of a photo of 481x321
COUNTS = [10, 100, 500, 1000, 2000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bsds", type=Path, default=Path("../shared/data/bsds500"))
    parser.add_argument("--backbones", nargs="+", default=BOUNDARIES.names, choices=BOUNDARIES.names)
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights/vgg16_imagenet_conv_fp16.pth"))
    parser.add_argument("--plain", action="store_true", help="learn without a backbone, too")
    parser.add_argument("--out", type=Path, default=Path("wsseg_ray/proposals/perceptrons"))
    arguments = parser.parse_args()
    if not arguments.bsds.is_dir():
        sys.exit(f"skipped: needs {arguments.bsds}")
    photos, segments = read(arguments.bsds)
    folds = np.arange(len(photos)) % FOLDS
    for name in [*([None] if arguments.plain else []), *arguments.backbones]:
        if name is None:
            save(arguments.out / f"{PLAIN}.npz", learn(photos, segments, folds, lambda photo, fold: None))
            continue
        finder = BOUNDARIES.get(name)
        backbone = load(finder, str(arguments.weights) if name == "vgg16" else "auto")
        heads = learn_boundary(finder, backbone, photos, segments, folds)
        find = partial(find_by, finder, backbone, heads)
        learned = {"boundary": heads[-1], **learn(photos, segments, folds, find, finder.learned)}
        save(arguments.out / f"{finder.learned}.npz", learned)


def learn(
    photos: list[np.ndarray],
    segments: list[list[np.ndarray]],
    folds: np.ndarray,
    find: Callable[[np.ndarray, int], Boundary | None],
    name: str = PLAIN,
) -> dict[str, Layers]:
    """The perceptrons that judge arcs and rank regions, over superpixels that follow the boundaries found."""
    parts = [
        cut(photo, find(photo, fold))
        for photo, fold in zip(tqdm(photos, f"{name}: superpixels", disable=None), folds, strict=True)
    ]
    arcs = learn_arcs(parts, segments, folds)
    return {"arcs": arcs[-1], "ranking": learn_ranking(parts, segments, folds, arcs, name)}


@torch.inference_mode()
def find_by(
    finder: BoundaryFinder, backbone: BaseBackbone, heads: list[Layers], photo: np.ndarray, fold: int
) -> Boundary:
    """The boundary of a photo, by the head that did not learn from its fold."""
    maps = outputs(finder, backbone, photo)
    return Boundary(boundary(maps, photo.shape[:2], heads[fold], finder.centred), finder.learned)


def read(root: Path) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """The 200 photos, and of each the label map of every person who drew its segments, (H, W) from 0."""
    files = sorted((root / "images" / "train").glob("*.jpg"))
    truths = [loadmat(root / "groundTruth" / "train" / f"{file.stem}.mat")["groundTruth"][0] for file in files]
    segments = [[person["Segmentation"][0, 0].astype(np.int64) - 1 for person in truth] for truth in truths]
    return [np.array(Image.open(file).convert("RGB")) for file in files], segments


def learn_boundary(
    finder: BoundaryFinder,
    backbone: BaseBackbone,
    photos: list[np.ndarray],
    segments: list[list[np.ndarray]],
    folds: np.ndarray,
) -> list[Layers]:
    """Heads that leave out each fold in turn, and one of all photos, from hypercolumns at sampled pixels."""
    rng = np.random.default_rng(0)
    columns, votes = [], []
    for photo, people in zip(tqdm(photos, "hypercolumns", disable=None), segments, strict=True):
        share = np.mean([drawn(labels) for labels in people], axis=0)
        pixels = sample(share, rng)
        columns.append(hypercolumns(finder, backbone, photo, pixels))
        votes.append(share.ravel()[pixels].astype(np.float32))
    x, y, fold = np.concatenate(columns), np.concatenate(votes), np.repeat(folds, PIXELS)
    del columns
    some = x[::20].astype(np.float32)
    mean, deviation = torch.tensor(some.mean(axis=0)), torch.tensor(some.std(axis=0) + 1e-3)
    heads = []
    for left_out in [*range(FOLDS), None]:
        head = fit_head(x, y, np.flatnonzero(fold != left_out), mean, deviation)
        heads.append(head)
        if left_out is not None:
            test = fold == left_out
            (weight, bias), *others = head
            hidden = np.concatenate([part.astype(np.float32) @ weight.T for part in np.array_split(x[test], 50)])
            z = perceive([(np.eye(HIDDEN, dtype=np.float32), bias), *others], hidden)
            print(f"boundary, fold {left_out}: average precision {average_precision_score(y[test] > 0.5, z):.3f}")
    return heads


def drawn(labels: np.ndarray) -> np.ndarray:
    """Pixels on either side of a person's boundary, (H, W) bool."""
    edge = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def sample(share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    near = ndimage.binary_dilation(share > 0, iterations=4)
    kinds = [(share > 0, PIXELS // 2), (near & (share == 0), PIXELS // 5), (~near, PIXELS - PIXELS // 2 - PIXELS // 5)]
    return np.concatenate([rng.choice(np.flatnonzero(kind if kind.any() else ~kind), n) for kind, n in kinds])


@torch.inference_mode()
def hypercolumns(finder: BoundaryFinder, backbone: BaseBackbone, photo: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """All maps at some pixels, bilinear, (n, C) float16."""
    height, width = photo.shape[:2]
    rows, columns = np.divmod(pixels, width)
    if finder.centred:
        places = np.stack([columns / (width - 1) * 2 - 1, rows / (height - 1) * 2 - 1], axis=-1)
    else:
        places = np.stack([(columns + 0.5) / width * 2 - 1, (rows + 0.5) / height * 2 - 1], axis=-1)
    grid = torch.tensor(places, dtype=torch.float32)[None, None]
    found = [
        functional.grid_sample(own, grid, padding_mode="border", align_corners=finder.centred)[0, :, 0]
        for own in outputs(finder, backbone, photo)
    ]
    return torch.cat(found).T.clamp(max=60000).half().numpy()


def fit_head(
    x: np.ndarray, y: np.ndarray, index: np.ndarray, mean: torch.Tensor, deviation: torch.Tensor, epochs: int = 3
) -> Layers:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = nn.Sequential(
        nn.Linear(x.shape[1], HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 1),
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.1)
    batches = len(index) // 1024
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=epochs * batches + 1)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(index), batches):
            logits = network((torch.tensor(x[batch]).float() - mean) / deviation)[:, 0]
            loss = functional.binary_cross_entropy_with_logits(logits, torch.tensor(y[batch]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    layers = [(m.weight.detach(), m.bias.detach()) for m in network if isinstance(m, nn.Linear)]
    weight, bias = layers[0]
    layers[0] = weight / deviation, bias - weight @ (mean / deviation)
    return [(weight.numpy(), bias.numpy()) for weight, bias in layers]


def learn_arcs(parts: list, segments: list[list[np.ndarray]], folds: np.ndarray) -> list[Layers]:
    """Networks that leave out each fold in turn, and one of all: do people draw a boundary along this arc?"""
    x = [hierarchies.arc_features(part, seen) for part, seen in parts]
    y = np.concatenate([separated(part, people) for (part, _), people in zip(parts, segments, strict=True)])
    fold = np.repeat(folds, [len(rows) for rows in x])
    x = np.vstack(x)
    networks = []
    for left_out in [*range(FOLDS), None]:
        learn = fold != left_out
        votes = np.random.default_rng(0).random(learn.sum()) < y[learn]  # each arc is one person's answer
        model = MLPClassifier(
            hidden_layer_sizes=(16,), alpha=1e-3, max_iter=10, batch_size=512, random_state=0, learning_rate_init=3e-3
        )
        networks.append(fit(model, x[learn], votes))
        if left_out is not None:
            precision = average_precision_score(y[~learn] > 0.5, perceive(networks[-1], x[~learn]))
            print(f"arcs, fold {left_out}: average precision {precision:.3f}")
    return networks


def separated(part: hierarchies.Partition, people: list[np.ndarray]) -> np.ndarray:
    """Share of the people whose segments hold the two superpixels of an arc apart, (E,)."""
    first, second = part.ends
    answers = []
    for labels in people:
        most = joint(labels, part).argmax(axis=0)
        answers.append(most[first] != most[second])
    return np.mean(answers, axis=0)


def joint(labels: np.ndarray, part: hierarchies.Partition) -> np.ndarray:
    """Pixels by segment and superpixel."""
    pairs = labels.ravel() * len(part.areas) + part.superpixels.ravel()
    return np.bincount(pairs, minlength=(labels.max() + 1) * len(part.areas)).reshape(-1, len(part.areas))


def learn_ranking(
    parts: list, segments: list[list[np.ndarray]], folds: np.ndarray, arcs: list[Layers], name: str
) -> Layers:
    """The network of all photos; the one that leaves out the last fold says how well objects are found there."""
    rng = np.random.default_rng(0)
    x, y, left_out = [], [], []
    for (part, seen), people, fold in zip(
        tqdm(parts, f"{name}: candidates", disable=None), segments, folds, strict=True
    ):
        strengths = hierarchies.arc_strengths(part, seen, arcs[fold])
        regions = combinations.candidates(part, hierarchies.trees(part, seen, strengths))
        features = ranking.features(part, seen, strengths, regions)
        iou = object_iou(part, people, regions)
        best = iou.max(axis=1, initial=0)
        others = rng.choice(len(best), min(CANDIDATES[1], len(best)), replace=False)
        chosen = np.unique(np.concatenate([np.argsort(-best)[: CANDIDATES[0]], others]))
        x.append(features[chosen])
        y.append(best[chosen])
        if fold == FOLDS - 1:
            left_out.append((part.areas, np.packbits(regions, axis=1), features, iou))
    last = np.repeat(folds == FOLDS - 1, [len(rows) for rows in y])
    x, y = np.vstack(x), np.concatenate(y)
    network = fit(ranker(), x[~last], y[~last])
    found = []
    for areas, packed, features, iou in left_out:
        regions = np.unpackbits(packed, axis=1, count=len(features)).astype(bool)
        order, _ = ranking.diverse(regions, areas, perceive(network, features), max(COUNTS))
        found.append(best_iou(iou[order], COUNTS))
    reached = np.hstack(found).mean(axis=1)
    print(f"{name}: J at {COUNTS} on the last fold: {' '.join(f'{value:.3f}' for value in reached)}")
    return fit(ranker(), x, y)


def object_iou(part: hierarchies.Partition, people: list[np.ndarray], regions: np.ndarray) -> np.ndarray:
    """IoU of candidates (S, N) with the segments that look like objects and that a second person agrees on, (N, K)."""
    sizes = part.areas.astype(np.float32) @ regions
    found = [np.empty((0, regions.shape[1]), np.float32)]
    for n, labels in enumerate(people):
        areas = np.bincount(labels.ravel())
        agreed = np.zeros(len(areas))
        for other in people[:n] + people[n + 1 :]:
            pairs = np.bincount(
                labels.ravel() * (other.max() + 1) + other.ravel(), minlength=len(areas) * (other.max() + 1)
            )
            both = pairs.reshape(len(areas), -1)
            agreed = np.maximum(agreed, (both / (areas[:, None] + np.bincount(other.ravel()) - both)).max(axis=1))
        sides = sum(np.isin(np.arange(len(areas)), side) for side in ranking.sides(labels))
        wanted = (areas >= MIN_OBJECT) & (areas <= labels.size / 2) & (sides <= 2) & (agreed >= 0.7)
        intersection = joint(labels, part)[wanted].astype(np.float32) @ regions
        found.append(intersection / (sizes + areas[wanted, None] - intersection))
    return np.vstack(found).T


def ranker() -> MLPRegressor:
    return MLPRegressor(
        hidden_layer_sizes=(32,), alpha=1, max_iter=12, batch_size=512, random_state=0, learning_rate_init=2e-3
    )


def fit(model: MLPClassifier | MLPRegressor, x: np.ndarray, y: np.ndarray) -> Layers:
    """The layers of a scikit-learn perceptron, its inputs' scale folded into the first."""
    scale = StandardScaler().fit(x)
    model.fit(scale.transform(x), y)
    weights, biases = [w.T for w in model.coefs_], list(model.intercepts_)
    weights[0] = weights[0] / scale.scale_
    biases[0] = biases[0] - weights[0] @ scale.mean_
    return [(w.astype(np.float32), b.astype(np.float32)) for w, b in zip(weights, biases, strict=True)]


def save(path: Path, learned: dict[str, Layers]) -> None:
    arrays = {}
    for name, layers in learned.items():
        kind = np.float16 if name == "boundary" else np.float32
        for n, (weight, bias) in enumerate(layers):
            arrays[f"{name}.weight{n}"], arrays[f"{name}.bias{n}"] = weight.astype(kind), bias.astype(np.float32)
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
