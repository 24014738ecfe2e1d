"""The beam searches of the certificate: which small checkpoints are searched, and how.

python -m certificates.beams     on transformers' side: search them, and record texts and scores for the tests

Neither PyTorch nor JAX is imported at the top: the tests read it too.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from certificates.cases import CASES, NEW, Case, V

RECORDED = Path(__file__).parent.parent / "tests" / "decode" / "recorded.json"
FAMILIES = ("GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM", "DeepseekV2ForCausalLM")
FAMILIES += ("Gemma2ForCausalLM", "T5ForConditionalGeneration")
SEARCHED = [next(case for case in CASES if case.architecture == name) for name in FAMILIES]
STOP = [1, 13, 32, 36, 65, 69, 71, 90]  # so many that texts of random models end


class Search(NamedTuple):
    """Arguments of transformers' `generate`."""

    num_beams: int
    length_penalty: float
    early_stopping: bool | str


SEARCHES = (
    Search(3, 1.0, False),
    Search(3, 1.0, True),
    Search(3, 1.0, "never"),
    Search(3, -0.7, False),
    Search(3, 0.0, "never"),
    Search(3, 3.0, False),
)


def searches(case: Case) -> tuple[Search, ...]:
    """Those that are recorded of a case: every one, and of one family another number of beams."""
    return (*SEARCHES, Search(5, 0.4, False)) if case.architecture == "LlamaForCausalLM" else SEARCHES


def prompts(case: Case) -> np.ndarray:
    """Two prompts, [2, 9]."""
    return np.random.default_rng(11).integers(2, V, (2, 9))


def record() -> None:
    """Search every case with transformers, and write what it finds, a line a case."""
    import transformers

    from certificates.reference import make, write_lines

    transformers.logging.set_verbosity_error()
    found: dict[str, object] = {"transformers": transformers.__version__}
    with tempfile.TemporaryDirectory() as folder:
        for case in SEARCHED:
            make(case, Path(folder) / case.name)
            found[case.name] = [searched(case, Path(folder) / case.name, how) for how in searches(case)]
    write_lines(found, RECORDED)


def searched(case: Case, folder: Path, how: Search) -> list[list[list[Any]]]:
    """Of each prompt, searched by itself, the [ids, score] of every beam; without the start and stop ids."""
    import torch
    import transformers

    model = getattr(transformers, case.architecture).from_pretrained(folder, attn_implementation="eager").eval()
    given = []
    for prompt in torch.tensor(prompts(case))[:, None]:
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW,
            do_sample=False,
            num_return_sequences=how.num_beams,
            eos_token_id=STOP,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **how._asdict(),
        )
        begin = 1 if model.config.is_encoder_decoder else prompt.shape[1]
        texts = [[i for i in ids if i not in (0, *STOP)] for ids in out.sequences[:, begin:].tolist()]
        given.append([list(pair) for pair in zip(texts, out.sequences_scores.tolist(), strict=True)])
    return given


def recorded() -> dict[str, Any]:
    """What transformers found."""
    return dict(json.loads(RECORDED.read_text()))


if __name__ == "__main__":
    record()
