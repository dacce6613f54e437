"""Which passes there are: from file names and other packages' entry points alone, importing none of them."""

import importlib.util
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

ENTRY_POINTS = "onnxopt.passes"


def pass_names() -> dict[str, str]:
    """Every pass that can be named in a recipe, with its family; those of other packages have the package's name."""
    names = {name: family for name, (_, family) in built_in().items()}
    for point in third_party():
        names[point.name] = package(point)
    return names


@cache
def built_in() -> dict[str, tuple[str, str]]:
    """Pass name -> (module, family) of the passes here."""
    spec = importlib.util.find_spec("onnxopt.passes")
    found = {}
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(root).glob("*/[a-z]*.py")):
            family = file.parent.name
            found[file.stem.replace("_", "-")] = (f"onnxopt.passes.{family}.{file.stem}", family)
    return found


def third_party() -> Iterator[EntryPoint]:
    """The passes of other packages; none can take the name of one here."""
    yield from (point for point in entry_points(group=ENTRY_POINTS) if point.name not in built_in())


def package(point: EntryPoint) -> str:
    """The package that a pass comes from."""
    return point.dist.name if point.dist else point.module
