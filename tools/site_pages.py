"""The pages of the site that nobody writes by hand, as a hook of MkDocs (`hooks` in mkdocs.yml): `make docs`.

`recipes.md` comes from the models and comments of wsseg_ray/recipe.py and from the shipped recipes, `api.md` from
`wsseg_ray.__all__`. Pages may also link to files outside docs/, such as `../RESULTS.md`, as they do in the repository:
these files are put into the site.
"""

from __future__ import annotations

import html
import inspect
import io
import posixpath
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import wsseg_ray
from wsseg_ray import recipe
from wsseg_ray.recipe import OrAuto, Recipe, VariantOf
from wsseg_ray.registry import registry

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()([^)\s#:]+)")  # the target of a link to a file
FROM_PAPER = re.compile(r"Sec\. \d(?:[\d.]*\d)?|Eq\. \(\d\)|Table \d|[\w-]+ \[\d+\]")
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
WORDS = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
ORDER = ("best", "voc12-best", "paper-voc12", "demo")  # of the columns with the recipes' own values

RECIPES = """# Recipes, key by key

A recipe is one YAML file that says everything about a run. `wsseg run` takes a shipped recipe by name, your own file,
or a folder of photos, which gets the recipe `best`. A key that you leave out has its default. A key that does not exist
is an error, and the message lists the keys that do.

```bash
wsseg run best --set dataset.root=photos --set proposals.count=500   # change single keys
wsseg init photos --out recipe.yaml                                  # or write `best` to a file,
wsseg run recipe.yaml                                                # edit it, and run it
```

This page is made from the program itself, so it names every key. "Paper" is the place in the paper (Wei et al., 2016)
that a key comes from. DeepLab [7] and HCP [30] are papers that it follows. `auto` means that the value is chosen when
the run begins, and the run prints its choice. Where a name is asked for, it may also be `module:attribute`, a part of
your own ([Extending](extending.md)).

The shipped recipes:

| recipe | what it is |
|---|---|
"""
API = """# Python API

These are the names of the package `wsseg_ray`. The functions of arrays need neither Ray nor files. `run` needs no Ray
with the setting `runtime.engine=local`. In the examples, `SMALL` is a list of settings that make the demo small.

```python
import wsseg_ray

wsseg_ray.run("/data/pets", "runs/pets", ["runtime.engine=local"])  # a folder of photos, or a recipe
labels = wsseg_ray.load("runs/pets").predict("/data/pets/two.png")  # (H, W): 0 background, i + 1 class i
```

"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the files outside docs/ that pages link to."""
    found = {name for page in files.documentation_pages() for name in outside(f"docs/{page.src_uri}")}
    for name in sorted(found):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "recipes.md", content=recipes_page()))
    files.append(File.generated(config, "api.md", content=api_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links from or to files outside docs/ into links within the site."""
    own = page.file.src_uri
    written = f"docs/{own}" if (Path(config.docs_dir) / own).exists() else own
    folder = posixpath.dirname(written)

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        return link[1] + posixpath.relpath(in_site(target), posixpath.dirname(own) or ".")

    return LINK.sub(moved, markdown)


def outside(page: str) -> Iterator[str]:
    """The files outside docs/ that a page links to; all paths start at the repository's root."""
    for link in LINK.finditer((ROOT / page).read_text()):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link[2]))
        if not target.startswith("docs/") and (ROOT / target).is_file():
            yield target


def in_site(path: str) -> str:
    """Where a file of the repository lies in the site."""
    return path.removeprefix("docs/")


def api_page() -> str:
    """The public names, for mkdocstrings."""
    return API + "".join(f"::: wsseg_ray.{name}\n\n" for name in wsseg_ray.__all__)


def recipes_page() -> str:
    """All keys of a recipe, by section, and the values that the shipped recipes give them."""
    shipped = recipe.shipped()
    values = {name: dict(leaves(yaml.safe_load(shipped_text(name)))) for name in ORDER}
    lines = [f"| `{name}` | {shipped[name]} |" for name in ORDER]
    for section in sections(Recipe, ""):
        lines += ["", *section.lines(), *section.own_values(values)]
    return RECIPES + "\n".join(lines) + "\n"


def shipped_text(name: str) -> str:
    return (resources.files("wsseg_ray") / "recipes" / f"{name}.yaml").read_text()


def leaves(data: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a YAML file, such as `hcp.backbone`, with their values."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


@dataclass(frozen=True)
class Section:
    """A section of the recipe: what comes before its keys, such as `hcp.`, and the model of its keys."""

    before: str
    model: type[BaseModel]

    @property
    def keys(self) -> list[str]:
        """The keys that hold a value, not a section."""
        return [key for key, field in self.model.model_fields.items() if not is_model(field.annotation)]

    def lines(self) -> list[str]:
        """Heading, description, and the table of keys."""
        title = f"`{self.before.rstrip('.')}`" if self.before else "Outside the sections"
        about = inspect.cleandoc(vars(self.model).get("__doc__") or "")
        said, hints = comments_of(self.model), get_type_hints(self.model, include_extras=True)
        rows = [self._row(key, hints[key], said[key]) for key in self.keys]
        heads = ("| key | type | default | meaning | paper |", "|---|---|---|---|---|")
        return [f"## {title}", "", about, "", '<div class="keys" markdown>', "", *heads, *rows, "", "</div>"]

    def own_values(self, values: dict[str, dict[str, Any]]) -> list[str]:
        """The table of values in the shipped recipes, of keys that a recipe gives; nothing where none does."""
        given = [key for key in self.keys if any(self.before + key in own for own in values.values())]
        if not given:
            return []
        heads = [row("key", *map(code, values)), "|---" * (len(values) + 1) + "|"]
        rows = [row(code(key), *(_value(own, self.before + key) for own in values.values())) for key in given]
        return ["", "In the shipped recipes (empty: the default):", "", *heads, *rows]

    def _row(self, key: str, hint: Any, said: str) -> str:
        field = self.model.model_fields[key]
        default = "**required**" if field.is_required() else code(field.get_default(call_default_factory=True))
        paper = place_in_paper(self.before + key, said)
        return row(code(key), kind_of(hint, field.metadata), default, in_cell(said), paper)


def row(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def _value(own: dict[str, Any], key: str) -> str:
    return code(own[key]) if key in own else ""


def sections(model: type[BaseModel], before: str) -> Iterator[Section]:
    """The sections of a recipe, depth first, also those in lists and mappings."""
    yield Section(before, model)
    for key, field in model.model_fields.items():
        inner = model_in(field.annotation)
        if inner is not None:
            step = "" if is_model(field.annotation) else ".STAGE" if key == "stages" else "[...]"
            yield from sections(inner, f"{before}{key}{step}.")


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation, also in a list or a mapping of models."""
    if is_model(annotation):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_in(part))), None)


def comments_of(model: type[BaseModel]) -> dict[str, str]:
    """What recipe.py says of each key: the comment above it, or behind it. Raises ValueError where a key has none."""
    found: dict[str, str] = {}
    above: list[str] = []
    key = None
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(model)).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if token.line.strip().startswith("#"):
                above.append(text)
            elif key:
                found[key] = f"{found.get(key, '')} {text}".strip()
        elif token.type == tokenize.NAME and token.start[1] == 4 and token.string in model.model_fields:
            key = token.string
            found[key], above = " ".join(above), []
        elif token.type == tokenize.NEWLINE:
            above, key = [], None
    missing = [
        key for key in model.model_fields if not found.get(key) and not is_model(model.model_fields[key].annotation)
    ]
    if missing:
        raise ValueError(f"wsseg_ray/recipe.py, {model.__name__}: no comment says what {', '.join(missing)} means")
    return found


def place_in_paper(key: str, said: str) -> str:
    """Where the paper speaks of a key: by its own comment, otherwise by that of the recipe `paper-voc12`."""
    found = FROM_PAPER.findall(said) or FROM_PAPER.findall(paper_comments().get(key, ""))
    return ", ".join(place.replace(" ", "&nbsp;") for place in dict.fromkeys(found))


def paper_comments() -> dict[str, str]:
    """The comments behind the keys of the recipe `paper-voc12`."""
    found, path = {}, [""]
    for line in shipped_text("paper-voc12").splitlines():
        if parts := re.match(r"( *)(\w+):[^#]*(?:# (.*))?$", line):
            path = [*path[: len(parts[1]) // 2], parts[2]] if parts[1] else [parts[2]]
            found[".".join(path)] = parts[3] or ""
    return found


def kind_of(hint: Any, marks: Any = ()) -> str:
    """What values a key takes, in words.

    Arguments:
        hint: the type of the key.
        marks: limits of the value that are not part of the type.
    """
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return kind_of_marked(arguments[0], [*arguments[1:], *marks])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(kind_of(part, marks if part in (int, float) else ()) for part in arguments)
    if get_origin(hint) is list:
        return f"list of {kind_of(arguments[0])}"
    if get_origin(hint) is dict:
        return f"for each name: {kind_of(arguments[1])}"
    if get_origin(hint) is Literal:
        return " or ".join(code(value) for value in arguments)
    if hint is NoneType:
        return "`null`"
    if is_model(hint):
        return "keys below"
    return f"{WORDS[hint.__name__]} {limits(marks)}".strip()


def kind_of_marked(hint: Any, marks: list[Any]) -> str:
    """`kind_of` of an annotated type, whose marks can also name a registry, or allow `auto`."""
    variant = next((mark for mark in marks if isinstance(mark, VariantOf)), None)
    inner = [part for mark in marks for part in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
    kind = names_of(variant) if variant else kind_of(hint, inner)
    return f"{kind} or `auto`" if any(isinstance(mark, OrAuto) for mark in marks) else kind


def names_of(variant: VariantOf) -> str:
    """The names of a registry; those of a family, such as `timm:`, end with what it is asked for."""
    if variant.path == "wsseg_ray.stages:STAGES":  # a recipe adds only stages that are not there
        return "`module:attribute`"
    return ", ".join(code(f"{name}NAME" if name.endswith(":") else name) for name in registry(variant.path).names)


def limits(marks: Any) -> str:
    """Limits of a number, such as `≥ 0 and < 1`."""
    pairs = [(sign, getattr(mark, name, None)) for mark in marks for name, sign in BOUNDS.items()]
    return " and ".join(dict.fromkeys(f"{sign} {bound:g}" for sign, bound in pairs if bound is not None))


def code(value: Any) -> str:
    """A value as YAML has it, as code."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return f"`{text.removesuffix('...').strip()}`"


def in_cell(text: str) -> str:
    """A comment as a sentence of a table cell, with links to the pages that it names."""
    if re.match(r"[a-z]+,? ", text):
        text = text[0].upper() + text[1:]
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", html.escape(text, quote=False).replace("|", "\\|"))
