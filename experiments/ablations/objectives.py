"""What should a decoder be asked? Every next token, those after a prefix, spans taken out, or UL2's mixture of these.

    lm study experiments.ablations.objectives

Losses under two objectives are of different tokens, and say nothing of each other. So all arms are evaluated by all of
four: they are compared by what they need to code held-out text from left to right, in bits per byte, and the report has
the loss of each under the others' objectives too. All are decoders with the ids that UL2 needs, see as many rows, and
spend as many FLOPs; of a row the causal arm is asked every token, the prefix arm half, spans one in five.

Raffel et al. (1910.10683, table 2) find prefixes ahead of plain causal models, and denoising ahead of both, when
fine-tuned on tasks; Tay et al. (2205.05131, section 4) find the mixture ahead of spans and of prefixes over tasks. No
task is fine-tuned here: what can be told is which model knows most when it is asked as another was.

Measured (10 minutes on 1 busy CPU core with bfloat16 units): bits per byte from left to right, the difference to causal
paired by 3 seeds with its 95% interval, p after Holm; then the loss in nats a token asked, by each objective.

              bits per byte                               asked causal   prefix   spans    ul2
    causal    2.756                                              4.908    4.898   7.150    6.134
    prefix    2.870    0.113 [0.090, 0.137]   p 0.003            5.110    5.092   7.230    6.272
    spans     3.565    0.809 [0.682, 0.936]   p 0.003            6.350    6.343   5.027    6.077
    ul2       3.163    0.407 [0.373, 0.440]   p 0.001            5.633    5.616   5.254    5.419

Found again, as far as losses can tell: UL2's arm is no one's worst, and the best on average over the four (5.48 nats,
against 5.77 to 5.95). Not found: that prefixes are ahead of the causal arm, even when asked after a prefix; it is asked
half as much in as many steps. Whether denoising is ahead on tasks cannot be told.
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
    arms={
        name: dict(method=dict(objective=objective)) if name != "causal" else {}
        for name, objective in OBJECTIVES.items()
    },
    seeds=range(3),
    measure="asked-causal/bits_per_byte",
)
