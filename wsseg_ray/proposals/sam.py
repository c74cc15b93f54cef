"""Masks of the Segment Anything Model (Kirillov et al., ICCV 2023) as further proposals.

SAM has learned outlines from a billion masks without names. So results with it are not results of image-level labels
alone: tables keep them apart. Encoder and decoder are ONNX files in SAM's usual export; MobileSAM's are 45 MB.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional

from wsseg_ray.errors import RecipeError
from wsseg_ray.proposals.regions import RegionProposals

FILES = ("_encoder.onnx", "_decoder.onnx")  # what the names of the two files end with
SIDE = 1024  # pixels of the encoder's square input: the photo's longer side, and zeros
LOGITS = 256  # side of the decoder's map of that square
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in grey levels
GOOD, STABLE = 0.8, 0.8  # least predicted IoU; least IoU of the mask at logits -1 and 1
SAME = 0.85  # IoU from which two masks are one
SMALLEST = 100  # pixels


class Sam(NamedTuple):
    """SAM's two networks, as sessions of ONNX Runtime."""

    encoder: Any
    decoder: Any


def load(encoder: bytes, decoder: bytes) -> Sam:
    """SAM from the contents of its two files, on the GPU where ONNX Runtime has one, else on one thread.

    Raises RecipeError where ONNX Runtime is not installed, or where a file is none of SAM's.
    """
    try:
        import onnxruntime  # an extra
    except ImportError as error:
        raise RecipeError("proposals.sam needs ONNX Runtime: pip install 'wsseg_ray[sam]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several photos at once take less time
    there = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
    try:
        sam = Sam(*(onnxruntime.InferenceSession(data, options, providers=providers) for data in (encoder, decoder)))
    except Exception as error:  # ONNX Runtime has an exception of its own for every kind of problem
        raise RecipeError(f"proposals.sam: a file is no ONNX network: {error}") from error
    names = {point.name for point in sam.decoder.get_inputs()}
    missing = {"image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"} - names
    if missing:
        raise RecipeError(f"proposals.sam: the decoder has no input {', '.join(sorted(missing))}: not SAM's export")
    return sam


def find_masks(sam: Sam, photo: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks of a photo from a grid of points: sure and stable ones, each once, best first.

    Arguments:
        photo: (H, W, 3) uint8.
        points: per side of the grid.
    Returns masks (n, H, W) bool and the IoU that SAM predicts for each, (n,) float32 in 0..1. Costs one pass of the
    encoder and points^2 of the decoder: with MobileSAM 1 s and 0.02 s each on two cores.
    """
    height, width = photo.shape[:2]
    scale = SIDE / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    (embedding,) = sam.encoder.run(None, {sam.encoder.get_inputs()[0].name: _square(photo, rows, columns)})
    found = [
        _mask_at(sam, embedding, (x + 0.5) * columns / points, (y + 0.5) * rows / points)
        for y in range(points)
        for x in range(points)
    ]
    low = torch.from_numpy(np.stack([logits for logits, _ in found]))
    inside = low[None, :, : max(1, round(rows * LOGITS / SIDE)), : max(1, round(columns * LOGITS / SIDE))]
    logits = functional.interpolate(inside, (height, width), mode="bilinear", align_corners=False)[0].numpy()
    return _distinct(logits, np.clip(np.array([quality for _, quality in found], np.float32), 0, 1))


def snapped(regions: RegionProposals, masks: np.ndarray) -> np.ndarray:
    """The superpixels of masks: those that lie in a mask by more than half.

    Arguments:
        masks: (n, H, W) bool.
    Returns (n, S) bool. Costs n H W.
    """
    flat, count = regions.superpixels.ravel(), len(regions.areas)
    inside = [np.bincount(flat[mask.ravel()], minlength=count) for mask in masks]
    return np.array(inside, np.int64).reshape(len(masks), count) * 2 > regions.areas


def joined(
    regions: RegionProposals, objectness: np.ndarray, masks: np.ndarray, quality: np.ndarray
) -> tuple[RegionProposals, np.ndarray, np.ndarray]:
    """Proposals and, after them, masks, over the superpixels of the proposals.

    Arguments:
        objectness: (N,) of the proposals.
        masks: (n, H, W) bool; quality: (n,), their objectness.
    Returns the proposals, their objectness, and of each 1 if it is a mask, else 0, (N',) uint8. Masks without a
    superpixel are left out.
    """
    more = snapped(regions, masks)
    some = more.any(axis=1)
    membership = sparse.vstack([regions.membership, sparse.csr_array(more[some].astype(np.float32))], format="csr")
    is_mask = np.repeat(np.array([0, 1], np.uint8), [len(regions), int(some.sum())])
    return RegionProposals(regions.superpixels, membership), np.concatenate([objectness, quality[some]]), is_mask


def _square(photo: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The encoder's input (1, 3, SIDE, SIDE): the photo at rows x columns, normalised, and zeros around it."""
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float()
    small = functional.interpolate(pixels, (rows, columns), mode="bilinear", align_corners=False)
    normal = (small - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return functional.pad(normal, (0, SIDE - columns, 0, SIDE - rows)).numpy()


def _mask_at(sam: Sam, embedding: np.ndarray, x: float, y: float) -> tuple[np.ndarray, float]:
    """Logits (LOGITS, LOGITS) of the mask at a point of the square, and the IoU that SAM predicts for it."""
    _, quality, low = sam.decoder.run(
        None,
        {
            "image_embeddings": embedding,
            "point_coords": np.array([[[x, y], [0, 0]]], np.float32),
            "point_labels": np.array([[1, -1]], np.float32),  # the second point is padding, as SAM's export wants it
            "mask_input": np.zeros((1, 1, LOGITS, LOGITS), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array([LOGITS, LOGITS], np.float32),
        },
    )
    best = int(quality[0].argmax())  # some exports give three masks, others one
    return low[0, best], float(quality[0, best])


def _distinct(logits: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The good and stable masks (n, H, W) with their quality, best first; of masks that are the same, the best."""
    masks = logits > 0
    wide, narrow = ((logits > level).sum(axis=(1, 2)) for level in (-1, 1))
    good = (narrow >= STABLE * wide) & (quality >= GOOD) & (masks.sum(axis=(1, 2)) >= SMALLEST)
    order = np.flatnonzero(good)[np.argsort(-quality[good], kind="stable")]
    flat = masks[order].reshape(len(order), -1).astype(np.float32)
    overlap, areas = flat @ flat.T, flat.sum(axis=1)
    same = overlap >= SAME * (areas[:, None] + areas - overlap)
    kept: list[int] = []
    for one in range(len(order)):
        if not same[one, kept].any():
            kept.append(one)
    return masks[order[kept]], quality[order[kept]]
