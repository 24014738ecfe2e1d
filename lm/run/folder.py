"""A run's folder: claimed for one experiment, and its files from before the first step.

All processes of a run read it; the first one writes.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm import value
from lm.data.mixture import Data
from lm.data.source import Source
from lm.experiment import Experiment, changed
from lm.machine import buckets, processes
from lm.machine.monitor import read_metrics
from lm.page.run_record import INSIDE_PAGE
from lm.renamed import upgrade
from lm.run.lengthen import check_length
from lm.text.tokenizer import Tokenizer

# from before the first step
PREPARED = ("tokenizer", "data.json", "start.json", "models.json", "about.json", "history.json")
SAMPLES = ("samples.json", "samples.txt", INSIDE_PAGE)
SAMPLED_WITH = ("prompts", "sample_tokens", "sampling", "steps")  # fields that say what the samples are


def claim(folder: Path, experiment: Experiment, reference: str) -> Path:
    """`folder`, created if missing, with experiment.json.

    The mesh may differ: a run resumes on other devices than it began on. A run may become longer where its learning
    rates so far stay (lengthen.py), and another experiment may take the folder of one that has not taken a step.
    Raises ValueError where the folder holds another experiment's run, cannot be written, or is not shared by all
    processes."""
    on_first_process("claim", folder, lambda: _claim(folder, experiment, reference))
    processes.all_or_raise("folder", lambda: _check_shared(folder, experiment))
    return folder


def on_first_process(what: str, folder: Path, f: Callable[[], Any]) -> None:
    """Call `f` in the first process; then all processes have what it wrote to `folder`."""

    def write() -> None:
        f()
        buckets.upload(folder)

    processes.on_first_process(what, write)
    if processes.count() > 1:
        processes.all_or_raise(f"{what}, shared", lambda: None if processes.is_first() else buckets.download(folder))


def _claim(folder: Path, experiment: Experiment, reference: str) -> None:
    file = folder / "experiment.json"
    if (folder / "study.json").exists():
        raise ValueError(f"{folder} is a study's folder, whose report this would replace: choose another --workdir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            _take_over(folder, json.loads(file.read_text())["value"], experiment)
        declared = {"experiment": reference, "fingerprint": experiment.fingerprint, "value": value.plain(experiment)}
        write_json(file, declared)
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(
            f"cannot use {buckets.display_path(folder)} as a run's folder: {error}; choose another --workdir"
        ) from None


def _take_over(folder: Path, old: Mapping[str, Any], experiment: Experiment) -> None:
    """Make the folder of the run `old` ready for `experiment`: the same run, or of another length; or any, where no
    step was taken. Raises ValueError where it holds another run."""
    before, now = value.plain(value.build(Experiment, old)), value.plain(experiment)
    different = [d for d in changed(old, now) if not _is_placement(d[0])]
    if different and not has_begun(folder):
        buckets.remove(folder, *PREPARED)
    elif different and all(path == "steps" for path, _, _ in different):
        check_length(folder, value.build(Experiment, old), experiment)
    elif different:
        shown = "; ".join(f"{path} was {old!r}, is {now!r}" for path, old, now in different[:6])
        more = f" and {len(different) - 6} more" if len(different) > 6 else ""
        raise ValueError(
            f"{buckets.display_path(folder)} holds a run of a different experiment ({shown}{more}): "
            "choose another --workdir, or remove it"
        )
    if any(before[name] != now[name] for name in SAMPLED_WITH):
        buckets.remove(folder, *SAMPLES)  # drawn again at the end


def has_begun(folder: Path) -> bool:
    """Whether the run in `folder` has taken a step: before that there is nothing to lose."""
    return bool(read_metrics(folder)) or bool(buckets.checkpoint_steps(folder))


def _is_placement(path: str) -> bool:
    """Whether the field at `path` determines on what a run is computed, and nothing else."""
    return path.split(".")[0] in ("mesh", "layout") or path == "compute.devices"


def _check_shared(folder: Path, experiment: Experiment) -> None:
    try:
        shared = json.loads((folder / "experiment.json").read_text())["fingerprint"] == experiment.fingerprint
    except (OSError, ValueError, KeyError):
        shared = False
    if not shared:
        raise ValueError(
            f"{buckets.display_path(folder)} here is not the folder of the first process: with several machines "
            "--workdir is on a shared disk or in a bucket"
        )


def write_json(file: Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    part.replace(file)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer` to `folder`, atomically."""
    part = folder.with_suffix(".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        tokenizer.save(part)
        part.rename(folder)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}; choose another --workdir") from None


def as_begun(folder: Path, data: Data) -> Data:
    """`data` as the run in `folder` began with it: batches follow from the order of the sources, and from how that
    version split their documents. Of a new run, `data` itself."""
    recorded, sources = _recorded(folder), data.mixture.sources
    if not recorded:
        return data
    ordered = sorted(sources, key=[*recorded, *sources].index)
    begun = {name: _as_recorded(sources[name], recorded.get(name, "")) for name in ordered}
    return replace(data, mixture=replace(data.mixture, sources=begun))


def begin_alike(folder: Path, others: Iterable[Path]) -> None:
    """Let the claimed run in `folder` begin with its sources as one of the runs in `others` began with the same ones:
    runs that are compared have one text, one split of it and one order, whatever version they began with."""
    if _recorded(folder):
        return
    own = _sources_of(folder)
    for other in sorted(others):
        if recorded := _recorded(other):
            theirs = _sources_of(other)
            same = {name: content for name, content in recorded.items() if own.get(name, 0) == theirs.get(name)}
            if same:
                return write_json(folder / "data.json", same)


def _recorded(folder: Path) -> dict[str, str]:
    """The fingerprints of a run's sources when it began, in their order; none before that. Raises ValueError where the
    file is damaged."""
    file = folder / "data.json"
    try:
        recorded = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}; choose another --workdir") from None
    if not isinstance(recorded, dict) or not all(isinstance(known, str) for known in recorded.values()):
        raise ValueError(f"{file} is damaged: expected the fingerprint of each source; choose another --workdir")
    return recorded


def _sources_of(folder: Path) -> dict[str, Any]:
    """The sources of a run's experiment, as plain data."""
    experiment = upgrade(json.loads((folder / "experiment.json").read_text())["value"])
    return dict(experiment["data"]["mixture"]["sources"])


def _as_recorded(source: Source, fingerprint: str) -> Source:
    """`source`, or what it was to an earlier version where that has the `fingerprint`."""
    earlier = source.earlier()
    if earlier is None or fingerprint in ("", source.fingerprint()):
        return source
    return earlier if earlier.fingerprint() == fingerprint else source


def check_sources(folder: Path, sources: Mapping[str, Source]) -> None:
    """Check that the sources are what they were when the run began: data.json has fingerprints of their content, an
    experiment only their names.

    Raises ValueError where one has changed, or where another process reads another text."""
    fingerprints = {name: source.fingerprint() for name, source in sources.items()}

    def check() -> None:
        recorded = _recorded(folder)
        for name in fingerprints:
            if recorded.get(name, fingerprints[name]) != fingerprints[name]:
                cure = "choose another --workdir" if has_begun(folder) else f"no step was taken, so remove {folder}"
                raise ValueError(f"source {name!r} has changed since this run began: {cure}")

    def record() -> None:
        check()
        if list(_recorded(folder).items()) != list(fingerprints.items()):  # a run that is only read may be read-only
            write_json(folder / "data.json", fingerprints)

    on_first_process("sources", folder, record)
    processes.all_or_raise("same sources", check)
