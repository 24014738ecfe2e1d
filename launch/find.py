"""Resolving `experiments.quickstart`, `module:name` or `path/to/page.py:name` to the experiment that it defines."""

import argparse
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lm.value import check_trusted, suggest

if TYPE_CHECKING:
    from lm.experiment import Experiment

DEFAULT = "experiment"


def find(reference: str) -> tuple["Experiment", str]:
    """The experiment that `reference` (module, module:name, or the path of a page in place of the module) names, and
    the full reference. The name of a ModelConfig is the module's experiment with that model. Modules are found as
    Python does, and in the current directory.

    Raises ValueError where there is none, naming what may be meant, or where the module fails, with the line."""
    from lm.experiment import Experiment, published
    from lm.model.config import ModelConfig

    value, full = _named(reference, lambda value: isinstance(value, (Experiment, ModelConfig)), "Experiment")
    if isinstance(value, Experiment):
        return value, full
    module, _, name = full.partition(":")
    return published(_named(module, lambda value: isinstance(value, Experiment), "Experiment")[0], name, value), full


def find_study(reference: str) -> tuple[Any, str]:
    """The study that `reference` names, and the full reference; a module with one study needs no name.

    Raises ValueError as `find` does."""

    return _named(reference, is_study, "study", alone=True)


def is_study(value: Any) -> bool:
    """Whether a value of a page is an ablation, a sweep or a ladder."""
    return hasattr(value, "trials") and not isinstance(value, type)


def find_constitution(reference: str) -> Any:
    """The Constitution that `reference` names. Raises ValueError as `find` does."""
    from lm.tune.constitution import Constitution

    return _named(reference, lambda value: isinstance(value, Constitution), "Constitution", alone=True)[0]


def _named(reference: str, accept: Callable[[Any], bool], kind: str, alone: bool = False) -> tuple[Any, str]:
    module_name, _, name = reference.partition(":")
    module_name, file = _page(module_name)
    module = load(module_name, file)
    names = [k for k, v in vars(module).items() if accept(v)]
    name = name or (names[0] if alone and len(names) == 1 else DEFAULT)
    value = getattr(module, name, None)
    if not accept(value):
        what = f"is {type(value).__name__}, no {kind}" if hasattr(module, name) else "is not there"
        other = _other_verb(vars(module), kind, module_name)
        raise ValueError(f"{module_name}:{name} {what}: {suggest(name, names)}{other}")
    return value, f"{module_name}:{name}"


def _other_verb(page: Mapping[str, Any], kind: str, module: str) -> str:
    """The end of an error about a page without what was asked for, an experiment or a study: the verb of the other."""
    from lm.experiment import Experiment

    if kind == "study":
        return f"; `lm train {module}` trains an experiment" if isinstance(page.get(DEFAULT), Experiment) else ""
    study = next((name for name, value in page.items() if is_study(value)), "")
    return f"; `lm study {module}:{study}` runs a study" if kind == "Experiment" and study else ""


def _page(text: str) -> tuple[str, Path | None]:
    """The module that `text` names, and None; or of the path of a page that no module's name leads to, that path in
    full, and it. Raises ValueError for a path where there is no page."""
    if not (text.endswith(".py") or "/" in text):
        return text, None
    path = Path(text).expanduser()
    file = path if path.suffix == ".py" else path.with_name(f"{path.name}.py")
    if not file.is_file():
        if (path / "experiment.json").is_file():
            raise ValueError(f"{text} is a run's folder, and no page: its page resumes it, with --workdir {text}")
        if path.is_dir():
            raise ValueError(
                f"{text} is a folder, and no page: expected a module, or a .py file that has an experiment"
            )
        module = text.removesuffix(".py").removeprefix("./").replace("/", ".")
        if path.is_absolute() or ".." in path.parts or not _exists(module):
            raise ValueError(f"no such page: {text}{_likely(module)}")
        return module, None
    file = file.resolve()
    for root in map(Path.resolve, (Path.cwd(), *map(Path, _roots()))):
        parts = file.relative_to(root).with_suffix("").parts if file.is_relative_to(root) else ()
        if parts and all(part.isidentifier() for part in parts):
            return ".".join(parts), None
    return str(file), file


def load(name: str, file: Path | None = None) -> ModuleType:
    """The module `name`, or the page in `file`. Raises ValueError as `find` does."""
    if not file and not _exists(name):
        raise ValueError(f"unknown experiment {name!r}{_likely(name)}")
    try:
        return _load_file(file) if file else importlib.import_module(name)
    except Exception as error:  # the user's module can raise anything
        page = file.name if file else name.rpartition(".")[2] + ".py"
        raise ValueError(f"{name} cannot be read: {_last(error)} ({_where(error, page)})") from error


def _load_file(file: Path) -> ModuleType:
    """The module of a page anywhere; what lies beside it can be imported there, as in a script. It has the file's name,
    or one of its own where another module has that."""
    plain = re.sub(r"\W", "_", file.stem)
    own = f"{plain}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    for name in (plain, own):
        if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(file):
            return sys.modules[name]
    if (folder := str(file.parent)) not in sys.path:
        sys.path.insert(0, folder)  # and in the processes of a study
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    found = plain in sys.modules or importlib.util.find_spec(plain)
    taken = found is True or (found and found.origin != str(file))
    spec = importlib.util.spec_from_file_location(own if taken else plain, file)
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def maker_of(run: str) -> str:
    """What the experiment of the name `run` is called on the command line; "" where no page has it."""
    from lm.experiment import Experiment

    for page in known():
        file = page_file(page)
        if file and re.search(rf"""name=["']{re.escape(run)}["']""", file.read_text(encoding="utf-8")):
            for name, value in vars(load(page)).items():
                if isinstance(value, Experiment) and value.name == run:
                    return page if name == DEFAULT else f"{page}:{name}"
    return ""


def check_may_load(reference: str) -> None:
    """Raises ValueError where a file names a page that is neither ours nor loaded yet, unless it is trusted."""
    module = reference.partition(":")[0]
    loaded = (getattr(one, "__file__", None) for one in list(sys.modules.values()))
    if not module.startswith("experiments.") and module not in loaded:
        check_trusted(module)


def page_file(name: str) -> Path | None:
    """The file of the page `name`, a module or a path, without an import; None where there is none."""
    path = Path(name if name.endswith(".py") else name.replace(".", "/") + ".py").expanduser()
    return next((file for root in (Path.cwd(), *map(Path, _roots())) if (file := root / path).is_file()), None)


def _likely(name: str) -> str:
    """The end of an error about the unknown page `name`: the names that may be meant."""
    near = difflib.get_close_matches(name, known(), cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f": {meant}`lm list` shows those there are"


def _exists(name: str) -> bool:
    """Whether a module of that name is found, in the current directory too."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return bool(name) and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        # a package above it is missing, or fails: only the first is an unknown name
        top = name.partition(".")[0]
        return top in sys.modules and f"{name}" in sys.modules


def known() -> list[str]:
    """The modules that may define experiments: those of the package experiments, and files in the current directory."""
    folders = [(Path(p or "."), "") for p in dict.fromkeys([os.getcwd(), *_roots()])]
    inside = [(folder / "experiments", "experiments.") for folder, _ in folders]
    pages = [
        prefix + ".".join(path.relative_to(folder).with_suffix("").parts)
        for folder, prefix in inside
        for path in sorted(folder.rglob("[!_]*.py"))
    ]
    pages += [path.stem for path in sorted(Path.cwd().glob("*.py")) if _mentions(path)]
    return list(dict.fromkeys(pages))


def _roots() -> list[str]:
    spec = importlib.util.find_spec("experiments")
    return [str(Path(p).parent) for p in spec.submodule_search_locations or []] if spec else []


def _mentions(path: Path) -> bool:
    """Whether a file may define an experiment, by its text."""
    try:
        return "Experiment(" in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _last(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _where(error: Exception, page: str) -> str:
    """file:line of the module's own line that failed, in the file `page`."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames: list[Any] = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if os.path.basename(f.filename) == page] or frames[-1:]
    return f"{own[-1].filename}:{own[-1].lineno}"


def filled(text: str) -> str:
    """An argument's text. Raises ArgumentTypeError where it is empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "it is empty, as an unset shell variable is: give a path, or leave the option out"
        )
    return text


def changed(
    experiment: "Experiment", settings: list[str], text: str | None = None, host_devices: int = 0
) -> "Experiment":
    """`experiment` with the changes of the command line: each `a.b=c` of `settings`, the user's `text` in place of all
    sources, and `host_devices` CPU devices."""
    if text:
        experiment = experiment.replace(data=_with_text(experiment.data, text))
    per_device = experiment.rows_per_device
    experiment = _with_settings(experiment, settings)
    named = {setting.partition("=")[0] for setting in settings}
    if "batch_tokens" in named and experiment.rows_per_device == per_device > 0:
        raise ValueError(
            f"batch_tokens has no effect where rows_per_device={per_device:g} says the batch: set that one, or "
            "rows_per_device=0 too"
        )
    return experiment.replace(compute=dict(devices=host_devices)) if host_devices else experiment


def _with_settings(experiment: "Experiment", settings: list[str]) -> "Experiment":
    """All of `settings`, in any order: one that is invalid before the others (fewer steps than the warm-up has) is
    applied after them. Of several for one field the last counts. Raises ValueError for the first that stays invalid."""
    from lm.value import parse

    pending = list({setting.partition("=")[0]: setting for setting in settings}.values())
    while pending:
        refused: list[tuple[str, ValueError]] = []
        for setting in pending:
            try:
                experiment = parse(experiment, setting)
            except ValueError as error:
                refused.append((setting, error))
        if len(refused) == len(pending):
            raise refused[0][1]
        pending = [setting for setting, _ in refused]
    return experiment


def _with_text(data: Any, text: str) -> Any:
    import dataclasses

    from lm.data.mixture import Mixture
    from lm.data.paths import source_at

    source, told = source_at(text)
    if told:
        warnings.warn(f"--text {text}: {told}", stacklevel=2)
    return dataclasses.replace(data, mixture=Mixture({"text": source}, {"text": 1.0}))
