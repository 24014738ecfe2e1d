"""A run's inside.html, to which its report links: what the model has inside for the run's first sample, as `lm inspect`
draws it."""

from pathlib import Path
from typing import Any

from lm.machine import buckets, processes
from lm.machine.monitor import waiting
from lm.model import count
from lm.page.markup import write
from lm.page.run_record import INSIDE_PAGE, fitted, read_json
from lm.page.run_report import write_report
from lm.pretrained import Pretrained, load, read_config
from lm.pretrained.inside import html, inside
from lm.run.samples import fits_one_device


def look_inside(workdir: str | Path) -> None:
    """Write the page of a run that has ended, and its report with a link to it; nothing where there is one already, or
    no sample of text, or where the model is not one process's. What hinders it is printed: the run is whole without."""
    folder = buckets.local_mirror(workdir)
    if processes.count() > 1 or (folder / INSIDE_PAGE).is_file() or not sample_to_inspect(folder):
        return
    try:
        if fits_one_device(4 * count.parameters(read_config(folder))):
            with waiting("looking inside"):
                page = write_inside(folder, load(folder))
            write_report(folder)
            buckets.upload(folder)
            print(f"inside: {buckets.display_path(folder)}/{page.name}")
    except (ValueError, RuntimeError) as error:
        print(f"no page of the model's inside: {str(error).partition(chr(10))[0]}")


def write_inside(folder: Path, model: Pretrained) -> Path:
    """Write the page of the run in `folder`, whose `model` is loaded, and return its path.

    Raises ValueError where there is no sample of text, or the model cannot read it."""
    text = sample_to_inspect(folder)
    if not text:
        raise ValueError(f"{folder} has no sample of text to look into: `lm inspect {folder} --text …` takes any")
    page = folder / INSIDE_PAGE
    write(page, html(folder.resolve().name, *inside(model, text)))
    return page


def sample_to_inspect(folder: Path) -> str:
    """The first sample that can be looked into, as the model read and wrote it; "" where there is none."""
    file = folder / "samples.json"
    samples = fitted(tuple[dict[str, Any], ...], read_json(file, []), f"{file} cannot be read")
    return next((str(sample["inspect"]) for sample in samples if sample.get("inspect")), "")
