"""Finding an experiment: `experiments.quickstart`, or `module:name`, becomes the value on that page."""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lm.value import suggest

if TYPE_CHECKING:
    from lm.experiment import Experiment

DEFAULT = "experiment"


def find(reference: str) -> tuple["Experiment", str]:
    """The experiment that `reference` (module, or module:name) names, and the reference in full. A model on a page, of
    a published size, is the page's experiment with that model. Modules are looked for as Python does, with the current
    directory.

    Raises ValueError when there is none, naming what is there, or when the page itself fails, naming the line."""
    from lm.experiment import Experiment, published
    from lm.model.config import ModelConfig

    found, full = _named(reference, lambda value: isinstance(value, (Experiment, ModelConfig)), "Experiment")
    if isinstance(found, Experiment):
        return found, full
    module, _, name = full.partition(":")
    return published(_named(module, lambda value: isinstance(value, Experiment), "Experiment")[0], name, found), full


def find_study(reference: str) -> tuple[Any, str]:
    """The study that `reference` names, and the reference in full; a page with one study needs no name.

    Raises ValueError as `find` does."""

    def study(value: Any) -> bool:
        return hasattr(value, "trials") and not isinstance(value, type)

    return _named(reference, study, "study", alone=True)


def _named(reference: str, right: Callable[[Any], bool], kind: str, alone: bool = False) -> tuple[Any, str]:
    module_name, _, name = reference.partition(":")
    module_name = _as_module(module_name)
    module = load(module_name)
    there = [k for k, v in vars(module).items() if right(v)]
    name = name or (there[0] if alone and len(there) == 1 else DEFAULT)
    found = getattr(module, name, None)
    if not right(found):
        what = f"is {type(found).__name__}, no {kind}" if hasattr(module, name) else "is not there"
        raise ValueError(f"{module_name}:{name} {what}: {suggest(name, there)}")
    return found, f"{module_name}:{name}"


def _as_module(written: str) -> str:
    """A path that the shell completed, experiments/quickstart.py, is the module experiments.quickstart."""
    return (
        written.removesuffix(".py").removeprefix("./").replace("/", ".")
        if written.endswith(".py") or "/" in written
        else written
    )


def load(name: str) -> ModuleType:
    """The module `name`. Raises ValueError as `find` does."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    if not _exists(name):
        raise ValueError(f"unknown experiment {name!r}: {suggest(name, known())}")
    try:
        return importlib.import_module(name)
    except Exception as error:  # the page is the user's: it can raise anything
        raise ValueError(f"{name} cannot be read: {_last(error)} ({_where(error, name)})") from error


def _exists(name: str) -> bool:
    try:
        return bool(name) and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        # a package above it is missing, or fails: only the first is an unknown name
        top = name.partition(".")[0]
        return top in sys.modules and f"{name}" in sys.modules


def known() -> list[str]:
    """The modules that look like experiments: those of the package experiments, and the pages in the current
    directory."""
    folders = [(Path(p or "."), "") for p in dict.fromkeys([os.getcwd(), *_roots()])]
    inside = [(folder / "experiments", "experiments.") for folder, _ in folders]
    pages = [f"{prefix}{path.stem}" for folder, prefix in inside for path in sorted(folder.glob("[!_]*.py"))]
    pages += [path.stem for path in sorted(Path.cwd().glob("*.py")) if _mentions(path)]
    return list(dict.fromkeys(pages))


def _roots() -> list[str]:
    spec = importlib.util.find_spec("experiments")
    return [str(Path(p).parent) for p in spec.submodule_search_locations or []] if spec else []


def _mentions(path: Path) -> bool:
    """Whether a file may hold an experiment: it is not imported to find out."""
    try:
        return "Experiment(" in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _last(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _where(error: Exception, name: str) -> str:
    """file:line of the page's own line that failed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames: list[Any] = traceback.extract_tb(error.__traceback__)
    page = name.rpartition(".")[2] + ".py"
    own = [f for f in frames if os.path.basename(f.filename) == page] or frames[-1:]
    return f"{own[-1].filename}:{own[-1].lineno}"


def changed(experiment: "Experiment", settings: list[str], text: str = "", host_devices: int = 0) -> "Experiment":
    """`experiment` after the command line's changes: each `a.b=c` of `settings`, a `text` folder of one's own in
    place of all sources, and so many host devices."""
    if text:
        experiment = experiment.replace(data=_with_text(experiment.data, text))
    experiment = _with_settings(experiment, settings)
    return experiment.replace(compute=dict(devices=host_devices)) if host_devices else experiment


def _with_settings(experiment: "Experiment", settings: list[str]) -> "Experiment":
    """All of `settings`, whatever their order: one that does not fit the others yet (fewer steps than the warm-up
    takes, say) waits for them. Of several for one field the last counts."""
    from lm.value import parse

    waiting = list({setting.partition("=")[0]: setting for setting in settings}.values())
    while waiting:
        refused: list[tuple[str, ValueError]] = []
        for setting in waiting:
            try:
                experiment = parse(experiment, setting)
            except ValueError as error:
                refused.append((setting, error))
        if len(refused) == len(waiting):
            raise refused[0][1]
        waiting = [setting for setting, _ in refused]
    return experiment


def _with_text(data: Any, text: str) -> Any:
    import dataclasses

    from lm.data.mixture import Mixture
    from lm.data.source import TextFile, TextFolder, existing

    path = existing(text).resolve()
    source: Any = TextFile(str(path))
    if path.is_dir():
        plain = next(path.glob("**/*.txt"), None) is not None
        source = TextFolder(str(path)) if plain else TextFolder(str(path), pattern="**/*")
    return dataclasses.replace(data, mixture=Mixture({"text": source}, {"text": 1.0}))
