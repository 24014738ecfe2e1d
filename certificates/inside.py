"""What transformers says of a model's inside: hidden states and attention, recorded for the taps' tests.

python -m certificates.inside FOLDER FILE.json

FOLDER has the checkpoints that `python -m certificates.reference make FOLDER` made. transformers' last hidden state is
behind the final norm, so that only the states before the layers are compared, and that of the last layer by the logits.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from certificates.cases import CASES, Case, inputs
from certificates.reference import write_lines

ONE_OF_EACH = tuple({case.architecture: case for case in CASES}.values())
FEW_STATES = (slice(None), slice(None), slice(12, None, 13), slice(3, None, 13))  # of [L, B, T, D]
FEW_LOOKS = (slice(None), slice(None), slice(None), slice(12, None, 13), slice(2, None, 11))  # of [L, B, N, T, S]
NAMES = {  # transformers' outputs -> our taps, and what is kept
    "hidden_states": ("resid_pre", FEW_STATES),
    "attentions": ("attn_pattern", FEW_LOOKS),
    "encoder_hidden_states": ("encoder_resid_pre", FEW_STATES),
    "encoder_attentions": ("encoder_attn_pattern", FEW_LOOKS),
    "decoder_hidden_states": ("resid_pre", FEW_STATES),
    "decoder_attentions": ("attn_pattern", FEW_LOOKS),
    "cross_attentions": ("cross_attn_pattern", FEW_LOOKS),
}


@torch.no_grad()
def inside(case: Case, folder: Path) -> dict[str, list[object]]:
    """Of each tap its standard deviation and some of its numbers."""
    kind = getattr(transformers, case.architecture)
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()
    given = {name: torch.tensor(value) for name, value in inputs(case).items()}
    out = model(**given, output_hidden_states=True, output_attentions=True)
    found: dict[str, list[object]] = {}
    for name, (tap, few) in NAMES.items():
        if out.get(name):
            layers = out[name][:-1] if name.endswith("hidden_states") else out[name]
            whole = np.stack([layer.numpy() for layer in layers])
            found[tap] = [float(whole.std()), whole[few].round(7).tolist()]
    return found


def main(folder: str, file: str) -> None:
    """Record a case of every architecture."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    write_lines({case.name: inside(case, Path(folder) / case.name) for case in ONE_OF_EACH}, Path(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
