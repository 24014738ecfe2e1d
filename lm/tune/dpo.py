"""Direct preference optimization (DPO, 2305.18290) and the losses that came of it.

With the log-ratio r of a side, its log-probability under the policy less that under the reference, beta r is the reward
for which the policy is optimal. DPO is the Bradley-Terry likelihood of the preferences under these rewards; IPO, hinge
and APO put other losses in its place. Each is a function of arrays below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from lm.bounds import Bounds, Positive, check
from lm.tune.preferences import Compared, Preference, chosen_and_rejected
from lm.tune.sequences import Sequences
from lm.value import suggest

Loss = Callable[..., jax.Array]
log_sigmoid, sigmoid = jax.nn.log_sigmoid, jax.nn.sigmoid


def dpo_loss(chosen: jax.Array, rejected: jax.Array, beta: float, label_smoothing: float = 0.0) -> jax.Array:
    """-(1 - e) log sigmoid(d) - e log sigmoid(-d), d = beta (chosen - rejected), of log-ratios: DPO (equation 7);
    with a `label_smoothing` e the conservative one, for preferences of which a share e is wrong (Mitchell 2023)."""
    d = beta * (chosen - rejected)
    return -(1 - label_smoothing) * log_sigmoid(d) - label_smoothing * log_sigmoid(-d)


def robust_loss(chosen: jax.Array, rejected: jax.Array, beta: float, label_smoothing: float = 0.0) -> jax.Array:
    """[-(1 - e) log sigmoid(d) + e log sigmoid(-d)] / (1 - 2 e): unbiased where a share e of the labels is flipped
    (2403.00409)."""
    d, e = beta * (chosen - rejected), label_smoothing
    return (-(1 - e) * log_sigmoid(d) + e * log_sigmoid(-d)) / (1 - 2 * e)


def hinge_loss(chosen: jax.Array, rejected: jax.Array, beta: float) -> jax.Array:
    """max(0, 1 - beta (chosen - rejected)) (SLiC's margin, 2305.10425, on DPO's rewards; 2309.06657)."""
    return jax.nn.relu(1 - beta * (chosen - rejected))


def ipo_loss(chosen: jax.Array, rejected: jax.Array, beta: float) -> jax.Array:
    """(chosen - rejected - 1 / (2 beta))^2, of log-ratios a token: IPO (2310.12036, equation 17)."""
    return jnp.square(chosen - rejected - 1 / (2 * beta))


def apo_zero_loss(chosen: jax.Array, rejected: jax.Array, beta: float) -> jax.Array:
    """1 - sigmoid(beta chosen) + sigmoid(beta rejected): the chosen side is to become likelier and the rejected one
    less so (2408.06266)."""
    return 1 - sigmoid(beta * chosen) + sigmoid(beta * rejected)


def apo_down_loss(chosen: jax.Array, rejected: jax.Array, beta: float) -> jax.Array:
    """sigmoid(beta chosen) + 1 - sigmoid(beta (chosen - rejected)): both sides are to become less likely, the rejected
    one more so (2408.06266)."""
    return sigmoid(beta * chosen) + 1 - sigmoid(beta * (chosen - rejected))


LOSSES: dict[str, Loss] = {
    "sigmoid": dpo_loss,
    "robust": robust_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
}
SMOOTHED = ("sigmoid", "robust")
BY_TOKEN = ("ipo",)


@dataclass(frozen=True)
class DPO(Preference):
    """Learn preference pairs by one of LOSSES, of log-ratios against the model that the run starts from.

    - `loss`: "sigmoid" is DPO's own. That of "ipo" reads the mean over each side's tokens, as TRL's does,
      where the paper writes the sum. The others read sums.
    - `beta`: how dear it is to leave the reference. In "ipo" the difference is drawn to 1 / (2 beta) nats a token.
    - `label_smoothing`: the share of preferences that is taken to be wrong, of "sigmoid" and "robust".

    Dropout of the model is off, in the policy as in the reference; that of adapters is not."""

    reads_reference = True

    choices: ClassVar[Mapping[str, Any]] = {"loss": LOSSES}

    beta: Positive = 0.1
    loss: str = "sigmoid"
    label_smoothing: Annotated[float, Bounds(0, 0.5, below=True)] = 0.0

    def __post_init__(self) -> None:
        check(self, "method")
        if self.loss not in LOSSES:
            raise ValueError(f"method.loss={self.loss!r}: {suggest(self.loss, LOSSES)}")
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(
                f"method.label_smoothing={self.label_smoothing:g}: the loss {self.loss} has none, only "
                f"{' and '.join(SMOOTHED)} have: leave it out"
            )

    def compare(
        self, policy: Sequences, reference: Sequences | None, values: jax.Array, weights: jax.Array
    ) -> Compared:
        assert reference
        ratios = policy.logprobs - reference.logprobs
        chosen, rejected = ratios[..., 0], ratios[..., 1]
        smoothing = (self.label_smoothing,) if self.loss in SMOOTHED else ()
        own = policy.means - reference.means if self.loss in BY_TOKEN else ratios
        loss = LOSSES[self.loss](own[..., 0], own[..., 1], self.beta, *smoothing)
        return Compared(loss, chosen_and_rejected(self.beta * chosen, self.beta * rejected))
