"""Mistakes in learning from a model's own completions, in the form of tests/mutations.py."""

from tests.mutations import of

BEFORE = "before_the_first_update_the_ratio_is_one_and_the_weight_is_the_kept_mass"
TESTS = {
    "lm/tune/policy_gradient.py": ("tests/tune/test_policy_gradient.py",),
    "lm/tune/reward_functions.py": ("tests/tune/test_reward_functions.py",),
    "lm/data/prompts.py": ("tests/data/test_prompts.py",),
    "lm/tune/grpo.py": of(
        "tune/test_grpo",
        *("what_was_cut_carries_no_loss_where_that_is_asked", "kl_off_the_reward_is_the_completion_s"),
        *("a_rewarded_completion_becomes_likelier_and_the_others_rarer", "every_field_changes_the_gradient"),
    ),
    "lm/tune/on_policy.py": of(
        "tune/test_grpo",
        *("a_batch_has_prompts_and_completions_token_by_token", "what_a_completion_is_worth_is_its_own", BEFORE),
        "a_sampler_with_other_parameters_stops_the_run",
    ),
    "lm/decode/rollout.py": of(
        "decode/test_rollout",
        *("log_probabilities_are_those_of_the_forward_pass", "a_row_depends_on_neither_neighbours_nor_padding"),
    ),
    "lm/train/logprobs.py": of("tune/test_grpo", "neither_padding_nor_neighbours_change_a_score"),
}

BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lm/tune/policy_gradient.py": (
        (
            "masked tokens are in the denominator",
            "lengths = mask.sum(1, keepdims=True)",
            "lengths = np.full((len(mask), 1), mask.shape[1])",
        ),
        ("the deviation is biased", "np.maximum(count - 1, 1)) + EPS", "np.maximum(count, 1)) + EPS"),
        ("the KL has the wrong sign", "return jnp.exp(log_r) - log_r - 1", "return log_r + 1 - jnp.exp(log_r)"),
        ("a missing reward is 0", "there = ~np.isnan(by_group)", "there = np.ones_like(by_group, bool)"),
        ("CISPO's weight has a gradient", "weight = jax.lax.stop_gradient(jnp", "weight = (jnp"),
        (
            "the sequence's ratio is of all its places",
            "jnp.maximum(mask.sum(1, keepdims=True), 1) if",
            "mask.shape[1] if",
        ),
    ),
    "lm/tune/reward_functions.py": (
        ("a NaN is a reward", "return number if math.isfinite(number) else None", "return number"),
        ("one that hangs is called again", "if k in self._late and self._late[k].is_alive():", "if 0:"),
        ("weights are left out", "np.nansum(table * self.weights, axis=1)", "np.nansum(table, axis=1)"),
        ("the first match is the answer", "found[-1].strip() ==", "found[0].strip() =="),
    ),
    "lm/data/prompts.py": (
        ("a prompt has no tools", 'json_of("tools", record, list), **variables', "None, **variables"),
        ("records are off by one", "np.maximum(there[:, 0] - 1, 0)", "np.maximum(there[:, 0], 0)"),
    ),
    "lm/tune/grpo.py": (
        ("what was cut carries loss", "kept = real & ~(", "kept = real | ("),
        ("the sampler's mismatch is not corrected", 'each *= batch["importance_weights"]', "each *= 1"),
        ("the reference is the policy", "self.score(frozen, batch)", "self.score(params, batch)"),
    ),
    "lm/tune/on_policy.py": (
        ("the stop token carries no loss", "< completions.lengths[:, None])", "< completions.lengths[:, None] - 1)"),
        ("rewards are of the row before", "table[rows] = self.rewards(", "table[rows - 1] = self.rewards("),
        ("a mismatch goes unnoticed", "if not gap <= self.method.max_sampler_gap:", "if 0:"),
        ("importance weights have no bound", "np.minimum(ratio, most).astype", "ratio.astype"),
        ("targets are a place late", "targets[rows, at - 1] = ", "targets[rows, at] = "),
    ),
    "lm/decode/rollout.py": (
        ("the policy's temperature is left out", "raw / sampling.temperature", "raw"),
        ("rows that are done go on", "self.lengths + live", "self.lengths + 1"),
        ("both log-probabilities are the chain's", "for x in (chain, policy)]", "for x in (chain, chain)]"),
    ),
    "lm/train/logprobs.py": (
        ("the normaliser is the largest logit", "log_z = jax.nn.logsumexp(logits, axis=-1)", "log_z = logits.max(-1)"),
    ),
}
