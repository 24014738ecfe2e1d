"""The relatives of GRPO as its values, with the settings of their papers; any field may be given.

method=dapo(rewards=(ExactAnswer(),), group=16)
"""

from typing import Any

from lm.tune.grpo import GRPO

Fields = dict[str, Any]


def dr_grpo(**given: Any) -> GRPO:
    """Dr. GRPO (2503.20783): neither lengths nor deviations are divided by."""
    own: Fields = dict(scale="none", aggregation="constant")
    return GRPO(**own | given)


def dapo(**given: Any) -> GRPO:
    """DAPO (2503.14476): clip-higher, token-level loss, dynamic sampling, no loss on what was cut."""
    own: Fields = dict(aggregation="token", clip_high=0.28, resample=3, drop_truncated=True)
    return GRPO(**own | given)


def rloo(**given: Any) -> GRPO:
    """RLOO (2402.14740): the others' mean as baseline, a completion as one action, KL off the reward."""
    own: Fields = dict(baseline="leave_one_out", scale="none", ratio="product", kl="reward", beta=0.05)
    return GRPO(**own | given)


def gspo(**given: Any) -> GRPO:
    """GSPO (2507.18071): one ratio a sequence, and its narrow clipping."""
    own: Fields = dict(ratio="sequence", clip_low=3e-4, clip_high=4e-4)
    return GRPO(**own | given)


def cispo(**given: Any) -> GRPO:
    """CISPO (2506.13585): ratios are clipped as weights, so that every token keeps its gradient."""
    own: Fields = dict(surrogate="cispo", aggregation="token", clip_high=4.0)
    return GRPO(**own | given)
