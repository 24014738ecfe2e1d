"""What should a decoder be asked? Every next token, those after a prefix, spans taken out, or UL2's mixture of these.

    lm study experiments.ablations.objectives

Losses under two objectives are of different tokens, and say nothing of each other. So all arms are evaluated by all of
four: they are compared by what they need to code held-out text from left to right, in bits per byte, and the report has
the loss of each under the others' objectives too. All are decoders with the ids that UL2 needs, see as many rows, and
spend as many FLOPs; of a row the causal arm is asked every token, the prefix arm half, spans one in five.

Raffel et al. (1910.10683, table 2) find prefixes ahead of plain causal models, and denoising ahead of both, when
fine-tuned on tasks; Tay et al. (2205.05131, section 4) find the mixture ahead of spans and of prefixes over tasks. No
task is fine-tuned here: what can be told is which model knows most when it is asked as another was.

Measured: (to be run).
"""

from experiments.ablations.small import experiment as small
from lm.data.denoise import UL2, SpanCorruption
from lm.data.objective import CausalLM, PrefixLM
from lm.experiment import Evaluation
from lm.study.ablation import Ablation

OBJECTIVES = {"causal": CausalLM(), "prefix": PrefixLM(), "spans": SpanCorruption(), "ul2": UL2()}
IDS = 103  # 100 sentinels and UL2's 3 modes

objectives = Ablation(
    small.replace(
        model=dict(vocab=small.model.vocab + IDS),
        evaluations={f"asked-{name}": Evaluation(objective=objective) for name, objective in OBJECTIVES.items()},
    ),
    arms={name: dict(objective=objective) if name != "causal" else {} for name, objective in OBJECTIVES.items()},
    seeds=range(3),
    measure="asked-causal/bits_per_byte",
)
