"""The samples of a finished run, in its folder."""

import itertools
from collections.abc import Callable
from typing import Any

import jax

from lm.decode.generate import NonFiniteLogits
from lm.machine import processes
from lm.model import count
from lm.pretrained import Pretrained
from lm.pretrained.runs import FinishedRun
from lm.run.folder import write_json
from lm.run.prepared import Prepared
from lm.sharding.batches import replicate
from lm.train.method import Sample


def write_samples(prepared: Prepared, params: Any, frozen: Any, step: int, say: Callable[[str], None]) -> None:
    """Write the method's samples of `params` and what is `frozen` after `step` to samples.txt and samples.json, and
    print them by `say`. All processes call it."""
    judged = [
        Sample(f"{prefix.rpartition('/')[2]}: {sample.title}", *sample[1:])
        for prefix, one in prepared.heldout.items()
        for sample in one.samples(params, frozen)
    ]
    gathered = gather_to_host(prepared.learner.model_params(params, frozen))
    if gathered is None or not processes.is_first():
        return
    e = prepared.experiment
    ids = FinishedRun(prepared.folder, e).ids()
    model = Pretrained(e.model, gathered, prepared.data.tokenizer, prepared.model, step, ids=ids)
    samples = []
    try:
        for sample in itertools.chain(prepared.learner.samples(model, e), judged):
            say(f"--- {sample.title}:\n{sample.text}")
            samples.append(sample)
    except NonFiniteLogits as error:  # the run itself is whole
        say(f"no more samples: {error}")
    if samples:
        texts = ("\n" + "=" * 80 + "\n").join(sample.text for sample in samples)
        (prepared.folder / "samples.txt").write_text(texts + "\n")
        write_json(prepared.folder / "samples.json", [sample._asdict() for sample in samples])


def gather_to_host(params: Any) -> Any:
    """`params` for use by the first process alone: replicated to one device of each process, or None where they exceed
    a quarter of its memory."""
    if processes.count() == 1:
        return params
    if not fits_one_device(count.tree_bytes(params)):
        if processes.is_first():
            print("no samples: the parameters do not fit one device; `lm sample` reads them from the checkpoint")
        return None
    return replicate(params)


def fits_one_device(size: int) -> bool:
    """Whether parameters of so many bytes take at most a quarter of a device's memory: the training state is in it
    too."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    return not limit or size <= limit // 4
