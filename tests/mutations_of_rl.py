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
    "lm/tune/gae.py": of(
        "tune/test_ppo",
        *("the_score_is_at_the_last_real_token_and_kl_costs", "advantages_are_the_sums_of_the_paper"),
        *("whitening_is_by_the_biased_variance_of_real_tokens", "a_value_is_held_near_the_old_one"),
    )
    + ("tests/tune/test_trl_ppo.py",),
    "lm/tune/kl_control.py": of("tune/test_ppo", "the_coefficient_is_drawn_to_its_target"),
    "lm/tune/ppo.py": of(
        "tune/test_ppo",
        "a_value_is_of_what_is_there_before_its_token",
        *("log_probabilities_are_over_the_sampling_temperature", "the_loss_is_the_mean_over_real_tokens"),
        *(
            "rewards_advantages_and_returns_are_of_their_tokens",
            "the_value_head_starts_at_zero_and_the_policy_at_its_reference",
        ),
        "several_updates_of_a_rollout_and_a_coefficient_after_them",
    )
    + ("tests/tune/test_trl_ppo.py",),
    "lm/tune/on_policy.py": of(
        "tune/test_grpo",
        *("a_batch_has_prompts_and_completions_token_by_token", "what_a_completion_is_worth_is_its_own", BEFORE),
        "a_sampler_with_other_parameters_stops_the_run",
    )
    + of("tune/test_ppo", "a_reward_model_reads_the_completion_to_its_end"),
    "lm/tune/on_policy_method.py": of(
        "tune/test_grpo", "what_cannot_be_learned_from_is_refused_in_a_line", "a_smoke_test_of_it_has_whole_groups"
    )
    + of("tune/test_ppo", "what_cannot_be_learned_from_is_refused_in_a_line"),
    "lm/tune/online_dpo.py": of(
        "tune/test_online_dpo",
        *("rows_are_ranked_and_pairs_stay_in_one_micro_batch", "prompts_without_a_preference_move_nothing"),
        "the_loss_is_dpo_s_of_the_best_and_the_worst",
    ),
    "lm/tune/completion_eval.py": of(
        "tune/test_completion_eval",
        *(
            "the_best_of_n_is_the_best_of_those_that_were_drawn",
            "win_rates_are_of_pairs_and_their_interval_is_over_prompts",
        ),
        *("a_tie_is_half", "n_grams_that_differ", "the_start_is_as_good_as_itself"),
    ),
    "lm/data/reviews.py": ("tests/data/test_reviews.py",),
    "lm/study/overoptimization.py": ("tests/study/test_overoptimization.py",),
    "lm/decode/rollout.py": of(
        "decode/test_rollout",
        *("log_probabilities_are_those_of_the_forward_pass", "a_row_depends_on_neither_neighbours_nor_padding"),
    ),
    "lm/run/course.py": of("tune/test_grpo", "stopped_and_resumed_it_has_the_same_bits")
    + of("run/test_course", "the_step_is_compiled_once_beside_the_first_values")
    + of("run/test_resume", "a_damaged_checkpoint_falls_back"),
    "lm/train/logprobs.py": of("tune/test_grpo", "there_is_no_dropout_in_policy_or_reference")
    + of("decode/test_rollout", "training_has_the_log_probabilities_of_sampling"),
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
    "lm/tune/completion_eval.py": (
        ("the worst of n is kept", "np.flatnonzero(totals > most)", "np.flatnonzero(totals < most)"),
        ("best-of-n is no divergence", "ratio + math.log(n) - (n - 1) / n", "ratio"),
        ("a tie is lost", "+ 0.5 * (own == other)", "+ 0.0 * (own == other)"),
        (
            "the interval is of one prompt",
            '/ max(sums["completions"], 1.0))\n            means',
            "/ 1.0)\n            means",
        ),
        (
            "the reference is the policy",
            "self.score(params, own) - self.score(start, own)",
            "2 * self.score(start, own)",
        ),
        ("n-grams go over the end", "for i in range(n)]).all(0)", "for i in range(n)]).any(0)"),
    ),
    "lm/data/reviews.py": (
        ("held-out prompts are trained on", "order[HELDOUT:] if is_train(split)", "order if is_train(split)"),
        ("what is said last counts", "dict(reversed(clauses))", "dict(clauses)"),
        ("the rejected one is better", '"chosen": max(pair, key=worth)', '"chosen": min(pair, key=worth)'),
    ),
    "lm/study/overoptimization.py": (
        ("rewards are not less the start's", "*(x - y for x, y in zip", "*(x for x, y in zip"),
        ("best of n is in the order of its arms", "sorted(points, key=lambda p: p.kl)", "list(points)"),
    ),
    "lm/data/prompts.py": (
        ("a prompt has no tools", 'json_of("tools", record, list), variables', "None, variables"),
        ("records are off by one", "np.maximum(there[:, 0] - 1, 0)", "np.maximum(there[:, 0], 0)"),
    ),
    "lm/tune/grpo.py": (
        ("what was cut carries loss", "kept = real & ~(", "kept = real | ("),
        ("the sampler's mismatch is not corrected", 'each *= batch["importance_weights"]', "each *= 1"),
        ("the reference is the policy", "self.score(frozen, batch)", "self.score(params, batch)"),
    ),
    "lm/tune/gae.py": (
        ("the KL is a reward", "0) - coefficient * kl, 0)", "0) + coefficient * kl, 0)"),
        ("the score is a token early", "axis=1)[:, ::-1] == 1)", "axis=1)[:, ::-1] == 2)"),
        (
            "the score is on padding",
            "last = mask & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1)",
            "last = np.arange(mask.shape[1]) == mask.shape[1] - 1",
        ),
        ("padding is charged", "return np.where(mask, np.where(last", "return np.where(mask | True, np.where(last"),
        ("the variance is unbiased", ".var(where=mask)", ".var(where=mask, ddof=1)"),
        (
            "what follows a completion has a value",
            "values, following = np.where(mask, values, 0)",
            "values, following = values",
        ),
        ("the clipped value always counts", "0.5 * jnp.maximum(free, near)", "0.5 * near"),
    ),
    "lm/tune/kl_control.py": (("the error has no bound", "-0.2, 0.2)", "-9, 9)"),),
    "lm/tune/ppo.py": (
        ("values are a token late", "self.values(params, batch), 0)", "np.roll(self.values(params, batch), 1, 1), 0)"),
        ("the reference is the policy", "self.score(frozen, batch)", "self.score(params, batch)"),
        ("all tokens are in the denominator", '{"weights": mask, "ref', '{"weights": batch["segment_ids"], "ref'),
        ("the coefficient stays", '"kl_coefficient": after}}', '"kl_coefficient": before["kl_coefficient"]}}'),
        ("the value head starts as it is drawn", 'jnp.zeros_like(start["head"]["score"])', 'start["head"]["score"]'),
        ("a cut completion keeps its reward", "if method.missing_stop is not None:", "if 0:"),
    ),
    "lm/tune/on_policy.py": (
        ("the stop token carries no loss", "< completions.lengths[:, None])", "< completions.lengths[:, None] - 1)"),
        (
            "the end is masked, since it is the pad",
            'new["weights"][rows, at - 1] = 1',
            'new["weights"][rows, at - 1] = nth < completions.lengths[rows] - completions.stopped[rows]',
        ),
        (
            "the sampler keeps the weights that it had first",
            "complete(self.sampler, params,",
            'complete(self.sampler, vars(self).setdefault("first", params),',
        ),
        (
            "the reward model reads padding",
            "at = np.minimum(last + 1, length - 1)",
            "at = np.full_like(last, length - 1)",
        ),
        ("rewards are of the row before", "table[rows] = self.rewards(", "table[rows - 1] = self.rewards("),
        ("a mismatch goes unnoticed", "if not gap <= self.method.max_sampler_gap:", "if 0:"),
        ("the reward model does not read the last token", "read)))[rows, at]", "read)))[rows, at - 1]"),
        ("importance weights have no bound", "np.minimum(ratio, most).astype", "ratio.astype"),
        ("targets are a place late", "targets[rows, at - 1] = ", "targets[rows, at] = "),
    ),
    "lm/tune/on_policy_method.py": (
        ("a smoke test has as many updates", "minibatches=1, epochs=1)", "epochs=1)"),
        ("a reward model may have another vocabulary", "if scorer and scorer.vocab != model.vocab:", "if 0:"),
        ("completions of greedy sampling", "if self.sampling.greedy:", "if 0:"),
    ),
    "lm/tune/online_dpo.py": (
        ("the worst is the second best", "- 1, 1)\n    order[each, 1]", "- 1, 1) * 0 + 1\n    order[each, 1]"),
        ("pairs are torn apart by minibatches", ".T.ravel()", ".ravel()"),
        ("equal rewards are a preference", "np.float32(~equal)", "np.float32(~equal | True)"),
        ("the reference is the policy", "self.score(frozen, batch)", "self.score(params, batch)"),
        ("the worst is preferred", ".reshape(self.method.group, -1)[:2].T", ".reshape(self.method.group, -1)[1::-1].T"),
    ),
    "lm/tune/assistant.py": (
        ("all answers are one draw", "self.stop, self.seed, index)", "self.stop, self.seed, 0)"),
        ("labels are weighed as they are drawn", "weights / weights.sum(1, keepdims=True)", "weights[:, ::-1]"),
        ("a label may have more tokens", "or any(len(row) != same + 1 for row in rows)", "or 0"),
        ("a choice has no tokens ahead", "AHEAD = 100.0", "AHEAD = 0.0"),
    ),
    "lm/tune/best_of.py": (
        ("the worst comes first", "np.argsort(-rewards", "np.argsort(rewards"),
        ("draws of parts are those of the beginning", "draws = [k * n + i for", "draws = [i for"),
        ("the score is of the completion alone", "model.score([answered(*pair) for", "model.score([pair[1] for"),
    ),
    "lm/tune/constitution.py": (
        ("a revision is of the first answer", 'draft.rounds[-1]["revision"] if draft.rounds else', "0 or"),
        ("the judge's place counts", "found[::2, 0], found[1::2, 1]", "found[::2, 0], found[::2, 0]"),
        ("the worse answer is chosen", "sides if ahead else sides[::-1]", "sides[::-1] if ahead else sides"),
        ("texts that were cut are used", "if not text.stopped:", "if 0:"),
        ("all prompts have one principle", 'generator(seed, "principle", number, round)', 'generator(seed, "", round)'),
        ("draws of parts are those of the beginning", "_Draft(first + i, conversation)", "_Draft(i, conversation)"),
    ),
    "lm/run/feedback.py": (
        ("a torn line counts", 'if line.endswith("\\n")]', "]"),
        ("all is made again", "range(len(outcomes), len(prompts), BLOCK)", "range(0, len(prompts), BLOCK)"),
        ("other settings go on", "elif others := value.differences(", "elif 0 and (others := value.differences)("),
    ),
    "lm/decode/rollout.py": (
        ("the policy's temperature is left out", "raw / sampling.temperature", "raw"),
        ("padding is attended to", "Inputs(tokens, segments=segments), model", "Inputs(tokens), model"),
        ("rows that are done go on", "self.lengths + live", "self.lengths + 1"),
        ("both log-probabilities are the chain's", "for x in (chain, policy)]", "for x in (chain, chain)]"),
    ),
    "lm/run/course.py": (
        (
            "a run that resumes has lost its moments",
            "self.time.resume(saved)",
            "state = dataclasses.replace(state, opt_state=self.initial_state().opt_state)",
        ),
        ("the step is compiled when it is called", "stepper.compile_ahead(first)", "pass"),
        ("batches follow a damaged checkpoint", "if start < last:", "if False:"),
    ),
    "lm/train/logprobs.py": (
        ("neighbours in a row are attended to", '"targets", "segment_ids", "positions")', '"targets", "positions")'),
        (
            "there is dropout in policy and reference",
            "x, _, losses, _ = model.hidden(params, Inputs.of(read, zigzag))",
            "x, _, losses, _ = model.hidden(params, Inputs.of(read, zigzag), key=jax.random.key(0))",
        ),
        ("the temperature is left out", "model.logits(params, x) / temperature", "model.logits(params, x)"),
        ("the normaliser is the largest logit", "log_z = jax.nn.logsumexp(logits, axis=-1)", "log_z = logits.max(-1)"),
    ),
}
