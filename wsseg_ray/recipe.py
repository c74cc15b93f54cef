"""The recipe: one YAML file that says everything about a run.

An unknown key is an error, which lists the known keys. Every default has its reason or the section of the paper that it
comes from. `load` reads a shipped recipe by name or a file, and applies `--set` overrides.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from wsseg_ray.errors import RecipeError
from wsseg_ray.registry import look_in, registry

VOC_CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
# Errors of the YAML reader: its own, ValueError on impossible dates, RecursionError on very deep nesting
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


BEST = "best"  # the recipe of a folder of photos
AUTO = "auto"  # the value of keys that are chosen when a run begins: see choices.py


# Names of files of labels, which lie beside the photos
LABEL_FILES = ("labels.csv", "labels.json", "labels.jsonl", "metadata.csv", "metadata.jsonl")
PHOTO_FILES = (".parquet", ".tar")  # endings of files with photos and labels in them


class OrAuto:
    """Type annotation: the value may be `auto` too."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            lambda value, validate: value if value == AUTO else validate(value),
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )


@dataclass(frozen=True)
class VariantOf:
    """Type annotation: the string is the name of a variant of the registry with this import path, see `registry`.

    The registry's module imports this one, so it is imported when a recipe is read. Checking a name imports no variant.
    """

    path: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            lambda value: registry(self.path).check(value), handler(source)
        )


Layout = Annotated[str, VariantOf("wsseg_ray.datasets:LAYOUTS")]
Source = Annotated[str, VariantOf("wsseg_ray.proposals:SOURCES")]
BackboneName = Annotated[str, VariantOf("wsseg_ray.backbones:BACKBONES")]
BoundaryBackbone = Annotated[str, VariantOf("wsseg_ray.proposals.boundaries:BOUNDARIES")]
Pooling = Annotated[str, VariantOf("wsseg_ray.hcp.pooling:POOLINGS")]
HcpLoss = Annotated[str, VariantOf("wsseg_ray.hcp:LOSSES")]
Metric = Annotated[str, VariantOf("wsseg_ray.refinement:METRICS")]
Keep = Annotated[str, VariantOf("wsseg_ray.refinement:KEEPS")]
Ranking = Annotated[str, VariantOf("wsseg_ray.supervision:RANKINGS")]
Refiner = Annotated[str, VariantOf("wsseg_ray.supervision:REFINERS")]
Reading = Annotated[str, VariantOf("wsseg_ray.supervision:READINGS")]
MaskMaker = Annotated[str, VariantOf("wsseg_ray.supervision:MASKS")]
NetworkName = Annotated[str, VariantOf("wsseg_ray.segmentation.networks:NETWORKS")]
HeadName = Annotated[str, VariantOf("wsseg_ray.segmentation.heads:HEADS")]
StageName = Annotated[str, VariantOf("wsseg_ray.stages:STAGES")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSection(Section):
    layout: Annotated[Layout, OrAuto()] = "voc"  # how photos and labels lie in the root; auto: as found there
    root: str | None = None  # the folder of the data set: see docs/data.md
    classes: list[str] | None = None  # to learn. null: VOC's 20, or classes.txt in the root, or all labels
    # The photos that networks learn from; auto: train_aug where VOC's layout has it, otherwise train
    train_split: str = "train_aug"
    val_split: str = "val"  # the photos on which networks are measured
    limit: int | None = Field(None, ge=1)  # photos per split: an evenly spread subset; null: all
    # Shrink photos so that the longer side fits; null: full size; auto: 500 pixels with a GPU, otherwise 400
    max_side: Annotated[int | None, Field(ge=16), OrAuto()] = None

    @field_validator("classes")
    @classmethod
    def _classes(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (len(value) == 0 or len(set(value)) != len(value) or len(value) > 254):
            raise ValueError("needs 1 to 254 different names")
        return value


class ProposalsSection(Section):
    source: Source = "generate"  # generate: our own generator; mcg, masks: files, see root
    root: str | None = None  # mcg: a folder of <image_id>.mat; masks: a folder of <image_id>.json
    count: int = Field(2000, ge=1)  # per photo, at most; Sec. 3.1: "about 2,000 proposals per image"
    # For generate: the backbone that finds boundaries; null: contours of colour and texture alone
    backbone: Annotated[BoundaryBackbone | None, OrAuto()] = None
    # Weights of this backbone, trained on ImageNet: a file, or one of the names that it has; auto: the first name
    weights: str = "auto"
    # Masks of SAM as further proposals: what the names of its two ONNX files begin with, such as weights/mobile_sam for
    # weights/mobile_sam_encoder.onnx and weights/mobile_sam_decoder.onnx. SAM has learned from outlines. null: none
    sam: str | None = None
    sam_points: int = Field(8, ge=1, le=64)  # points per side of the grid at which SAM is asked

    @model_validator(mode="after")
    def _weights_of_a_backbone(self) -> ProposalsSection:
        if self.backbone is None and self.weights != AUTO:
            raise ValueError(f"weights {self.weights} need a backbone: give proposals.backbone too, such as vgg16")
        return self


class FeaturesSection(Section):
    """One look per photo: what a frozen backbone sees is stored once, and later stages read it."""

    # Whether stage `features` stores them; false: each stage that needs them passes photos through the backbone again
    stored: bool = True
    # Further scales at which photos are seen, for prediction.scales
    scales: list[Annotated[float, Field(gt=0, le=4)]] = []
    mirror: bool = False  # whether mirrored photos are seen too, for training and prediction.mirror
    dims: int | None = Field(None, ge=1)  # reduce each cell to this many dimensions, by PCA; null: keep all channels


class HcpSection(Section):
    # Sees the photos for the classifier of regions. Sec. 4.2: VGG-16; auto: what suits the machine
    backbone: Annotated[BackboneName, OrAuto()] = "vgg16"
    # The backbone's weights: a file; `imagenet` (torchvision downloads it), `pretrained` (timm does) or `packaged` (an
    # installed package); `auto`: the first of these that the backbone has; null: at random
    weights: str | None = "auto"
    # What HCP sees of a region. warp: the region cut out and resized, as in Sec. 3.1; roi: its box on the feature map;
    # segment: the mean feature of its superpixels; context: that, and its difference from the rest of the photo
    pooling: Pooling = "segment"
    # If weights has only conv layers, fc6 starts at random and learns so much faster than fc7 that the maps get worse
    # (docs/results/accuracy.md). So its input is multiplied by this. 1: off
    random_fc6_scale: float = Field(0.1, gt=0)
    freeze: Literal["none", "all"] | NonNegativeInt = (
        "none"  # none, all, or how many conv layers are frozen, counted from the photo
    )
    # Epochs of the first phase, in which the whole photo is the one hypothesis. Sec. 4.2: about 30 epochs in both
    # phases; auto: fewer for more photos
    image_epochs: Annotated[int, Field(ge=0), OrAuto()] = 15
    # Epochs of the second phase, in which proposals are the hypotheses. Sec. 4.2; auto: fewer for more photos
    hypothesis_epochs: Annotated[int, Field(ge=0), OrAuto()] = 15
    region_rounds: int = Field(0, ge=0)  # trainings on regions with targets from the last round's maps; the paper: 0
    region_epochs: Annotated[int, Field(ge=1), OrAuto()] = 4  # epochs per region round; auto: fewer for more photos
    hypotheses: int = Field(10, ge=1)  # per photo. Sec. 3.1: "only 10 specific proposals are selected"
    # Number of best-ranked boxes that normalized cut clusters: 300 take 0.02 s per photo, 2,000 take 1.2 s
    clustered_boxes: int = Field(300, ge=1)
    # Square pixels: smaller boxes are dropped before hypotheses are chosen. HCP [30]: 900
    min_area: int = Field(900, ge=0)
    # Boxes whose longer side is more than this many times the shorter one are dropped too. HCP [30]: 4
    max_aspect: float = Field(4.0, gt=1)
    batch_size: int = Field(30, ge=1)  # photos per step. Sec. 4.2: mini-batches of 30
    learning_rate: float = Field(1e-4, gt=0)  # of all layers but the last. Sec. 4.2
    image_last_learning_rate: float = Field(1e-2, gt=0)  # of the last layer in image-fine-tuning. Sec. 4.2
    hypothesis_last_learning_rate: float = Field(1e-3, gt=0)  # of the last layer in hypothesis-fine-tuning. Sec. 4.2
    # The learning rates are multiplied by 0.1 after this many epochs. Sec. 4.2: 10; auto: two thirds of image_epochs
    decay_every: Annotated[int, Field(ge=1), OrAuto()] = 10
    momentum: float = Field(0.9, ge=0, lt=1)  # of gradient descent. Sec. 4.2
    weight_decay: float = Field(5e-4, ge=0)  # of all weights. Sec. 4.2
    # How the scores of a photo are compared with its labels. HCP [30]: squared loss on the softmax;
    # binary_cross_entropy: independent classes, so a region may show no class
    loss: HcpLoss = "squared"
    threshold: float = Field(0.5, ge=0, lt=1)  # a proposal with a score above this is a candidate. Sec. 3.1: 0.5
    min_candidates: int = Field(10, ge=1)  # a label without a candidate gets this many of its best proposals

    @model_validator(mode="after")
    def _clustered_boxes(self) -> HcpSection:
        if self.clustered_boxes < self.hypotheses:
            raise ValueError(f"clustered_boxes {self.clustered_boxes} is less than hypotheses {self.hypotheses}")
        return self


class RefinementSection(Section):
    enabled: bool = True  # false: all candidates are kept
    # How Eq. (1) is computed. moments: from means, without pairs; faiss: from all pairs; auto: moments if the metric
    # allows it, otherwise faiss
    engine: Literal["auto", "moments", "faiss"] = "auto"
    metric: Metric = "squared_l2"  # the distance of two candidates. Eq. (1): squared_l2
    keep: Keep = "farthest"  # which candidates are kept. Sec. 3.2: "descending order", so the farthest
    fraction: float = Field(0.5, gt=0, le=1)  # the share of candidates that is kept. Sec. 3.2: "the top half"
    pca_energy: float = Field(0.98, gt=0, le=1)  # the share of the features' variance that PCA keeps. Sec. 3.2
    pca_dims: int = Field(512, ge=1)  # dimensions after PCA, at most. Sec. 3.2: "from 4,096 to 512"
    # Photos in the sample on which PCA is fitted, evenly spread over the training photos. Without a sample, PCA would
    # need more memory for more photos. 64 x 64 are 4,096 features, eight for each of 512 dimensions
    pca_photos: int = Field(64, ge=1)
    pca_candidates: int = Field(64, ge=1)  # candidates per photo of PCA's sample, at most


class SupervisionSection(Section):
    # How scores become maps. votes: Sec. 3.3.1, the share of candidates that cover a superpixel; mean_score: the mean
    # score of all proposals that cover it
    reading: Reading = "votes"
    # How maps become a rough mask. regions: Sec. 3.3.2, the union of the best regions; sure: only what the maps are
    # sure of, see background_below and object_from
    mask: MaskMaker = "regions"
    regions: int = Field(10, ge=1)  # regions per class in a rough mask. Sec. 3.3.2: the top 10 regions
    # The regions that are ranked for a class. all: "the region proposals generated by MCG" (Sec. 3.3.2); candidates:
    # the "selected proposals" (Sec. 3.3), with a score over hcp.threshold, also those that the refinement drops
    pool: Literal["all", "candidates"] = "all"
    refiners: list[Refiner] = []  # applied to the maps, in order. The paper: none. max: divide by the maximum
    min_area: float = Field(0.0, ge=0, lt=1)  # regions below this share of the photo are not ranked
    # By what regions are ranked. sum: Eq. (5); map_iou: IoU with the thresholded map
    ranking: Ranking = "sum"
    threshold: float = Field(0.3, gt=0, lt=1)  # map_iou's threshold, as a share of the map's maximum
    # For mask sure: superpixels where every map is below this are background
    background_below: float = Field(0.25, gt=0, le=1)
    # For mask sure: superpixels where a map reaches this show its class. No network learns from those between the two
    object_from: float = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _sure(self) -> SupervisionSection:
        if self.background_below > self.object_from:
            raise ValueError(f"background_below {self.background_below} is more than object_from {self.object_from}")
        return self


class RivalsSection(Section):
    """The start of the rivals of Table 4, which learn from the labels alone."""

    # The whole network is first trained to classify photos for this many epochs, like CAM. The authors of the rivals
    # start from a full ImageNet classifier; with a random fc6 and fc7 a rival stays with the cell that was best at
    # first. 0: no start
    start_epochs: int = Field(4, ge=0)
    # For MIL_FCN and ILP, where only the few cells with the highest score get a gradient; Pathak et al. use 1e-4
    max_learning_rate: float = Field(1e-4, gt=0)


class SegmentationSection(Section):
    networks: list[NetworkName] = ["AN_A", "SN_A", "AN_B", "SN_B"]  # the networks to train: see docs/voc.md. Sec. 4.2
    ablation: bool = False  # also train the networks without the refinement (Table 3)
    # Sees the photos for the segmentation networks. Sec. 3.3.1: VGG-16, as DeepLab [7]; auto: HCP's
    backbone: Annotated[BackboneName, OrAuto()] = "vgg16"
    head: HeadName = "largefov"  # the layers behind the backbone. Sec. 3.3.1: DeepLab [7]
    # The backbone's weights, as hcp.weights, but null: the backbone of this run's HCP; `random`: at random
    weights: str | None = "auto"
    freeze: Literal["none", "all"] | NonNegativeInt = "none"  # as hcp.freeze
    epochs: Annotated[int, Field(ge=1), OrAuto()] = 15  # per training. Sec. 4.2; auto: fewer for more photos
    batch_size: int = Field(8, ge=1)  # photos per step. Sec. 4.2
    crop: int = Field(321, ge=33)  # side of the square crop, in pixels; rounded up to stride k + 1. DeepLab [7]: 321
    learning_rate: float = Field(1e-3, gt=0)  # of all layers but the last, which has ten times this. Sec. 4.2
    decay_every: int = Field(5, ge=1)  # the learning rates are divided by 10 after this many epochs. Sec. 4.2: 5
    momentum: float = Field(0.9, ge=0, lt=1)  # of gradient descent. Sec. 4.2
    weight_decay: float = Field(5e-4, ge=0)  # of all weights but biases (DeepLab [7]). Sec. 4.2
    # The weight of a class in the loss of masks is its share of the pixels, to the power of -balance. The paper: 0
    balance: float = Field(0.0, ge=0, le=1)
    # More trainings of each network, on its own labels of the training photos; auto: one for few photos, none for many
    rounds: Annotated[int, Field(ge=0), OrAuto()] = 0
    rivals: RivalsSection = RivalsSection()

    @field_validator("networks")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        if len(value) == 0 or len(set(value)) != len(value):
            raise ValueError("needs at least one network, each named once")
        return value


class CrfSection(Section):
    """DeepLab's dense CRF: an appearance kernel and a smoothness kernel."""

    enabled: bool = True  # false: labels are those of the network alone
    iterations: int = Field(10, ge=1)  # steps of mean field
    bilateral_weight: float = Field(4.0, ge=0)  # weight of the appearance kernel
    bilateral_xy: float = Field(121.0, gt=0)  # width of the appearance kernel in the photo, in pixels
    bilateral_rgb: float = Field(5.0, gt=0)  # width of the appearance kernel in colour, in grey levels
    spatial_weight: float = Field(3.0, ge=0)  # weight of the smoothness kernel
    spatial_xy: float = Field(3.0, gt=0)  # width of the smoothness kernel in the photo, in pixels


class PredictionSection(Section):
    # Factors of the photo's size at which networks see it; logits are averaged over them
    scales: list[Annotated[float, Field(gt=0, le=4)]] = Field([1.0], min_length=1)
    mirror: bool = False  # average over the mirrored photo too


class StageSection(Section):
    """Resources of a stage on the cluster; null: chosen for the cluster (`engine/resources.py`)."""

    cpus: float | None = Field(None, gt=0)  # per task; in a stage with actors or trainers, per actor or trainer
    memory_gb: float | None = Field(None, gt=0)  # per task, actor or trainer; Ray does not enforce it
    max_workers: int | None = Field(None, ge=1)  # tasks, actors or trainers at once
    batch_size: int | None = Field(None, ge=1)  # photos per task, at most; never less than one shard
    gpus: float | None = Field(None, ge=0)  # per trainer or actor; 0.5: two share one
    min_workers: int | None = Field(None, ge=1)  # fewest to run with; null: 1, or as many trainers as are asked for

    @model_validator(mode="after")
    def _workers(self) -> StageSection:
        if self.min_workers and self.max_workers and self.min_workers > self.max_workers:
            raise ValueError(f"min_workers {self.min_workers} is more than max_workers {self.max_workers}")
        return self


class MachineSection(Section):
    """A kind of machine of an autoscaling cluster: one of its worker node types."""

    cpus: float = Field(gt=0)  # CPUs of one such machine
    gpus: float = Field(0, ge=0)  # GPUs of one such machine
    memory_gb: float | None = Field(None, gt=0)  # memory of one such machine; null: not known
    count: int = Field(1, ge=1)  # the most that the cluster may have


class RuntimeSection(Section):
    """How a recipe runs. Nothing here changes a result, so a change here does not run a stage again."""

    engine: Literal["ray", "local"] = "ray"  # what runs the stages. local: one process, without Ray; the same tables
    num_workers: int | None = Field(None, ge=1)  # actors or Train workers of every stage; null: chosen for the cluster
    use_gpu: Literal["auto"] | bool = "auto"  # auto: where the cluster has one or can add one
    checkpoint_minutes: float = Field(5.0, ge=0)  # trainings are saved this often, and after each epoch
    compile: bool = False  # torch.compile for segmentation training: minutes at the start, faster steps on a GPU
    profile: bool = False  # each actor and trainer writes a trace of a few of its steps to logs/traces
    zip_predictions: bool = True  # write the labels of each network as one file, too, as VOC's server takes them
    no_progress_minutes: float = Field(30.0, gt=0)  # a stage without progress stops after this; a new machine takes 5
    # The machines that the cluster may grow to; null: the existing machines, or those in the file of `ray up`
    cluster: list[MachineSection] | None = None
    stages: dict[str, StageSection] = {}  # resources of single stages, by name


class Recipe(Section):
    seed: int = Field(0, ge=0)  # of all random numbers of the run
    dataset: DatasetSection = DatasetSection()
    proposals: ProposalsSection = ProposalsSection()
    features: FeaturesSection = FeaturesSection()
    hcp: HcpSection = HcpSection()
    refinement: RefinementSection = RefinementSection()
    supervision: SupervisionSection = SupervisionSection()
    segmentation: SegmentationSection = SegmentationSection()
    prediction: PredictionSection = PredictionSection()
    crf: CrfSection = CrfSection()
    extra_stages: list[StageName] = []  # stages of your own: see docs/extending.md
    runtime: RuntimeSection = RuntimeSection()

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        backbones = {self.segmentation.backbone, self.hcp.backbone}
        if self.segmentation.weights is None and len(backbones) > 1 and AUTO not in backbones:
            raise ValueError(
                "segmentation.weights: null takes HCP's backbone, but segmentation.backbone is "
                f"'{self.segmentation.backbone}' and hcp.backbone is '{self.hcp.backbone}'; give `auto`, a file or "
                "`random`"
            )
        return self


def shipped() -> dict[str, str]:
    """Names of the recipes in the package, each with the first comment line of its file."""
    folder = resources.files("wsseg_ray") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text().splitlines()[0].lstrip("# ") for f in files}


def _folder_of(photos: str) -> str | None:
    """The folder of photos that a path or URI means, itself or that of a file of photos or labels; None: it is none.

    Raises RecipeError where a file looks like labels, but has another name.
    """
    if "://" in photos:
        folder, mark, query = photos.partition("?")
        above, _, name = folder.rstrip("/").rpartition("/")
        return (above if _holds_photos(name) else folder.rstrip("/")) + mark + query
    path = Path(photos)
    if path.is_dir():
        return str(path.resolve())
    if _holds_photos(path.name) and path.is_file():
        return str(path.resolve().parent)
    if _holds_photos(path.name) or path.suffix in (".csv", ".jsonl"):  # other JSON may be a recipe: it is YAML
        raise RecipeError(f"{path}: the file must exist, and its name must be one of {', '.join(LABEL_FILES)}")
    return None


def _holds_photos(name: str) -> bool:
    """Whether a file of this name has labels, or photos with labels."""
    return name in LABEL_FILES or name.endswith(PHOTO_FILES)


def run_name(recipe: str) -> str:
    """How the run of a recipe, or of photos, is called where nobody names it: `pets` of `/data/pets/labels.csv`."""
    folder = None if recipe in shipped() else _folder_of(recipe)
    return PurePosixPath(folder.partition("?")[0]).name if folder else Path(recipe).resolve().stem


def best_for(folder: str) -> str:
    """The recipe `best` for a folder of photos, an absolute path or a URI, as YAML with its comments."""
    text = (resources.files("wsseg_ray") / "recipes" / f"{BEST}.yaml").read_text()
    place = json.dumps(folder, ensure_ascii=False)  # a quoted string of JSON is one of YAML
    return "\n".join(f"  root: {place}" if line.startswith("  root: null") else line for line in text.split("\n"))


def load(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read a shipped recipe by name or a YAML file, apply overrides, validate.

    Modules named in it are searched in the file's folder, in the current folder, and among the installed modules.

    Arguments:
        name: one of `shipped()`, the path of a YAML file, or a folder of photos, its URI or its file of labels: they
            get the recipe `best`.
        overrides: `section.key=value` strings; the value is read as YAML.
    Raises RecipeError, which names the key, what is wrong, and what is allowed.
    """
    folder = None if name in shipped() else _folder_of(name)
    name = BEST if folder else name
    if name in shipped():
        text = (resources.files("wsseg_ray") / "recipes" / f"{name}.yaml").read_text()
    else:
        try:
            text = Path(name).read_text()
            look_in(Path(name).resolve().parent)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"no recipe '{name}': it is not a shipped recipe ({', '.join(shipped())}) or a readable file: {error}"
            ) from error
    look_in(Path.cwd())
    try:
        data = yaml.safe_load(text) or {}
    except NOT_YAML as error:
        raise RecipeError(f"{name} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{name} must hold sections (dataset:, hcp:, ...), not {type(data).__name__}")
    if folder:
        data["dataset"]["root"] = folder
    for override in overrides or []:
        _override(data, override)
    return validate(data)


def validate(data: dict[str, Any]) -> Recipe:
    """A recipe from plain data. Raises RecipeError, with one line per problem."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError("\n".join(_problem(e) for e in error.errors())) from error
    for key, value in leaves(recipe):
        if isinstance(value, str):
            refuse_password(key, value)
    return recipe


def refuse_password(key: str, place: str) -> None:
    """Raise RecipeError for a URI with a user and password: they would be written into the run, for all its readers.

    The user `anonymous` is nobody: so public buckets of Google's store are named.
    """
    if re.match(r"\w+://(?!anonymous@)[^/?]*@", place):
        raise RecipeError(
            f"{key}: a URI with a password would be kept in the run's files; take the password out, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machines a role"
        )


def leaves(section: BaseModel, before: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a recipe, such as `hcp.backbone`, with their values."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def check_variants(section: BaseModel, before: str = "") -> None:
    """Import every variant that a recipe names. Raises RecipeError where one cannot be imported."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            check_variants(value, f"{before}{name}.")
        for mark in (*field.metadata, *(mark for kind in get_args(field.annotation) for mark in get_args(kind))):
            if isinstance(mark, VariantOf):
                for own in value if isinstance(value, list) else [value] if value not in (None, AUTO) else []:
                    _import_variant(f"{before}{name}", mark.path, own)


def _import_variant(key: str, path: str, value: str) -> None:
    try:
        registry(path).get(value)
    except ValueError as error:
        raise RecipeError(f"{key}: {error}") from error


def fingerprint(*parts: Any) -> str:
    """A short hash of plain data; equal data have equal hashes."""
    text = json.dumps(parts, sort_keys=True, default=lambda part: part.model_dump())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def dump(recipe: Recipe) -> str:
    """The complete recipe as YAML, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False)


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override}: write section.key=value")
    try:
        value = yaml.safe_load(text)
    except NOT_YAML as error:
        raise RecipeError(f"--set {override}: the value is not YAML: {error}") from error
    *sections, key = path.split(".")
    for section in sections:
        if not isinstance(data.get(section), dict):
            data[section] = {}
        data = data[section]
    data[key] = value


def _problem(error: ErrorDetails) -> str:
    location = ".".join(str(part) for part in error["loc"] if part != "literal['none','all']")
    if error["type"] == "extra_forbidden":
        section: type[BaseModel] = Recipe
        for part in error["loc"][:-1]:
            if part in section.model_fields:  # otherwise it is an index of a list or a stage's name
                section = _section(section.model_fields[str(part)].annotation) or section
        return f"{location}: no such key; there are {', '.join(section.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{location}: {message}" if location else message


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section type of a key, also where the key has a list or a dict of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part))), None)
