"""Variants by name or by import path; what is wrong with a name is said before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wsseg_ray import recipe
from wsseg_ray import registry as module
from wsseg_ray.backbones import BACKBONES
from wsseg_ray.errors import RecipeError
from wsseg_ray.registry import Registry, folders, look_in, registry


class Animal:
    def __init__(self, name: str) -> None:
        self.name = name


CAT = Animal("cat")
ANIMALS: Registry[Animal] = Registry(
    "animal",
    {
        "cat": CAT,
        "dog": "tests.test_registry:DOG",
        "zoo:": "tests.test_registry:from_zoo",
        "gone": "tests.test_registry:GONE",
    },
    Animal,
)
DOG = Animal("dog")


def from_zoo(name: str) -> Animal:
    return Animal(f"zoo's {name}")


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    """Folders that a test adds are gone afterwards, and so are their modules."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("wsseg_ray.registry._folders", [])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def test_names():
    assert ANIMALS.names == ["cat", "dog", "zoo:", "gone"]
    assert ANIMALS.get("cat") is CAT and ANIMALS.get("dog") is DOG
    assert ANIMALS.get("zoo:lion").name == "zoo's lion"


def test_an_unknown_name_says_which_there_are():
    for wrong in ("bird", "zoo:", "", "not a name:x"):
        with pytest.raises(
            ValueError, match=r"no animal '.*'; there are cat, dog, zoo:NAME, gone, or give one of your own"
        ):
            ANIMALS.check(wrong)


def test_a_module_of_ones_own(tmp_path):
    """From a folder; as a module of a package too."""
    (tmp_path / "own_animals.py").write_text(
        "from tests.test_registry import Animal\nBIRD = Animal('bird')\nNUMBER = 3\n"
    )
    with pytest.raises(ValueError, match=r"there is no module own_animals; it must lie beside the recipe"):
        ANIMALS.check("own_animals:BIRD")
    look_in(tmp_path)
    look_in(tmp_path)
    assert ANIMALS.check("own_animals:BIRD") == "own_animals:BIRD" and "own_animals" not in sys.modules
    assert ANIMALS.get("own_animals:BIRD").name == "bird"
    assert folders() == [str(tmp_path)] and sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("own_pets:FISH", ["own_pets:FISH", "cannot be imported", "FISH"]),
        ("own_pets.more:FISH", ["own_pets.more:FISH", "cannot be imported"]),
        ("own_pets:NUMBER", ["is a int, and must be a Animal"]),
        ("own_broken:BIRD", ["own_broken:BIRD", "no_such_library"]),
        ("gone", ["tests.test_registry:GONE", "cannot be imported", "GONE"]),
    ],
)
def test_what_cannot_be_imported_says_why(tmp_path, value, words):
    (tmp_path / "own_pets.py").write_text("NUMBER = 3\n")
    (tmp_path / "own_broken.py").write_text("import no_such_library\n")
    look_in(tmp_path)
    with pytest.raises(ValueError) as caught:
        ANIMALS.get(ANIMALS.check(value))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_without_a_contract_any_object_will_do():
    anything: Registry[object] = Registry("thing", {})
    assert anything.get("tests.test_registry:CAT") is CAT
    with pytest.raises(ValueError, match="no thing 'cat'; there are none, or give one"):
        anything.check("cat")


def test_a_registry_by_its_path():
    assert registry("tests.test_registry:ANIMALS") is ANIMALS


# ---- recipes


def test_a_recipe_names_modules_that_lie_beside_it(tmp_path):
    (tmp_path / "own_keep.py").write_text("def keep(candidates):\n    return -candidates.score\n")
    (tmp_path / "r.yaml").write_text("refinement: {keep: 'own_keep:keep'}\n")
    assert recipe.load(str(tmp_path / "r.yaml")).refinement.keep == "own_keep:keep"
    assert str(tmp_path) in folders()


def test_or_in_the_current_folder(tmp_path, monkeypatch):
    """Python itself looks there for `python -m wsseg_ray`, but not for `wsseg`."""
    (tmp_path / "own_here.py").write_text("def keep(candidates):\n    return -candidates.score\n")
    monkeypatch.chdir(tmp_path)
    assert recipe.load("demo", ["refinement.keep=own_here:keep"]).refinement.keep == "own_here:keep"


def test_a_recipe_says_what_is_wrong_with_a_name():
    with pytest.raises(
        RecipeError, match=r"refinement\.keep: no way to choose candidates 'best'; there are nearest, farthest"
    ):
        recipe.load("demo", ["refinement.keep=best"])
    with pytest.raises(RecipeError, match=r"segmentation\.networks.*there is no module own_missing"):
        recipe.load("demo", ["segmentation.networks=[own_missing:NETWORK]"])


def test_variants_are_imported_before_any_work(tmp_path):
    (tmp_path / "own_networks.py").write_text("NETWORK = 3\n")
    (tmp_path / "r.yaml").write_text("segmentation: {networks: ['own_networks:NETWORK', 'own_networks:GONE']}\n")
    loaded = recipe.load(str(tmp_path / "r.yaml"))
    with pytest.raises(RecipeError, match=r"segmentation\.networks: the network 'own_networks:NETWORK' is a int"):
        recipe.check_variants(loaded)


def test_reading_a_recipe_imports_nothing_heavy():
    """`wsseg doctor` with a mistake answers at once: torch alone takes two seconds to import."""
    code = (
        "import sys\n"
        "from wsseg_ray import recipe\n"
        "for name in recipe.shipped(): recipe.load(name)\n"
        "print(*sorted({'torch', 'ray', 'torchvision', 'faiss'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


def test_every_registered_name_is_there():
    """All registries of the package: each variant can be imported."""
    import wsseg_ray

    marks = {mark for _, mark in variant_fields(recipe.Recipe)}
    assert len(marks) == 15
    for path in marks:
        found = registry(path)
        assert all(found.check(name) == name for name in found.names if not name.endswith(":"))
        assert len(found.variants()) == sum(not name.endswith(":") for name in found.names) > 0
    assert Path(wsseg_ray.__file__).parent.is_dir()


def variant_fields(section) -> list[tuple[str, str]]:
    found = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, recipe.BaseModel):
            found += variant_fields(field.annotation)
        marks = [*field.metadata, *(m for kind in recipe.get_args(field.annotation) for m in recipe.get_args(kind))]
        found += [(name, mark.path) for mark in marks if isinstance(mark, recipe.VariantOf)]
    return found


def test_code_of_ones_own_can_be_refused(tmp_path, monkeypatch):
    """For recipes and runs of others. What the package has, and its families, stay."""
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert BACKBONES.check("mine:backbone")
    monkeypatch.setattr(module, "_own_modules", True)
    module.refuse_own_modules()
    with pytest.raises(ValueError, match=r"'mine:backbone': modules of your own are refused \(--no-plugins\)"):
        BACKBONES.get("mine:backbone")
    assert BACKBONES.check("vgg16") and BACKBONES.check("torchvision:resnet50")


def test_the_digest_of_code_of_ones_own(tmp_path, monkeypatch):
    """Of the module's file, or of all files of a package; nothing of names that the package has."""
    monkeypatch.setattr(module, "_folders", [str(tmp_path)])
    (tmp_path / "mine.py").write_text("a = 1")
    (before,) = module.own_code("mine:a")
    (tmp_path / "mine.py").write_text("a = 2")
    assert module.own_code("mine:a") != [before] and module.own_code(["mine:a", "max"]) == module.own_code("mine:a")
    (tmp_path / "package").mkdir()
    for name in ("__init__", "parts"):
        (tmp_path / "package" / f"{name}.py").write_text(name)
    assert len(module.own_code("package.parts:a")) == 2
    assert module.own_code("timm:resnet50") == module.own_code("vgg16") == module.own_code(3) == []
