"""Mistakes in fine-tuning, in the form of tests/mutations.py."""

from tests.mutations import of

LORA = of(
    "tune/test_lora",
    *("merged_is_unmerged", "factors_have_the_scale_of_their_papers", "dora_is_the_paper_s"),
    *("dropout_is_of_training_alone_and_differs_by_layer", "the_first_loss_is_the_base_s"),
    *("weights_gradients_of_what_is_frozen_are_not_computed", "a_base_that_is_not_known_or_does_not_pack_is_refused"),
    "a_base_in_fewer_bits_is_the_matrix_that_it_stands_for",
)
PATHS = of(
    "tune/test_lora",
    *("parameters_are_chosen_by_their_paths", "alternatives_are_those_of_the_top_level"),
    *("a_path_that_matches_nothing_names_near_ones", "what_is_full_is_trained_itself"),
)
SCORED = of("pretrained/test_scores", "an_adapter_has_the_head_and_makes_of_a_model_of_texts_one_of_scores")
TESTS = {
    "lm/model/adapted.py": LORA,
    "lm/model/quantized.py": ("tests/model/test_quantized.py",),
    "lm/tune/lora.py": LORA + PATHS + SCORED,
    "lm/tune/partial.py": LORA + of("tune/test_lora", "on_a_mesh_as_on_one_device_and_what_is_frozen_stays"),
    "lm/tune/paths.py": PATHS,
    "lm/tune/sft.py": of(
        "tune/test_sft",
        "a_run_is_measured_replies_and_is_loaded_with_its_template",
        *("a_prompt_without_room_is_refused_before_the_first_step", "loss_gradients_and_accuracy_are_trl_s"),
    ),
    "lm/tune/distill.py": ("tests/tune/test_distill.py",),
    "lm/tune/reward.py": of(
        "tune/test_reward",
        *("loss_gradient_and_metrics_are_trl_s", "calibration_is_the_distance_of_shares_from_probabilities"),
        "packed_is_alone_and_read_at_the_eos",
    ),
    "lm/tune/divergence.py": ("tests/tune/test_distill.py",),
    "lm/tune/outputs.py": ("tests/tune/test_distill.py",),
    "lm/run/models.py": ("tests/tune/test_distill.py",),
    "lm/tune/preferences.py": ("tests/tune/test_preferences.py",),
    "lm/tune/sequences.py": of("tune/test_preferences", "sums_are_of_each_side_s_masked_targets"),
    **{f"lm/tune/{name}.py": ("tests/tune/test_preference_losses.py",) for name in ("dpo", "kto", "orpo", "simpo")},
    "lm/run/start.py": ("tests/run/test_start.py",),
    **dict.fromkeys(
        (
            "lm/pretrained/peft.py",
            "lm/pretrained/peft_config.py",
            "lm/pretrained/peft_experts.py",
            "lm/pretrained/peft_save.py",
        ),
        ("tests/pretrained/test_peft.py",),
    ),
}

BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lm/tune/preferences.py": (
        ("the reference moves", "self.trained.logprobs(frozen, batch)}", "self.trained.logprobs(params, batch)}"),
        ("the reference is computed at every step", "if any(key not in self.known for key in keys):", "if True:"),
        ("a run that resumes forgets the reference", "iter(range(step))", "iter(range(0))"),
        ("held-out measures count empty pairs", '"pairs": weights.sum()}', '"pairs": jnp.float32(weights.size)}'),
    ),
    "lm/tune/sequences.py": (
        ("the prompt is part of a side", "jnp.where(mask > 0, logprobs, 0)", "logprobs * (mask >= 0)"),
        ("padding is part of the first side", "one_hot(segment_ids - 1,", "one_hot(segment_ids * 0,"),
    ),
    "lm/tune/dpo.py": (
        (
            "label smoothing is ignored",
            "return -(1 - label_smoothing) * log_sigmoid(d) - label_smoothing",
            "return -log_sigmoid(d) - 0",
        ),
        ("IPO reads sums", "if self.loss in BY_TOKEN else ratios", "if False else ratios"),
        ("rewards lack beta", "chosen_and_rejected(self.beta * chosen,", "chosen_and_rejected(chosen,"),
    ),
    "lm/tune/kto.py": (
        ("the reference point may be negative", "jnp.maximum(mean, 0)", "jnp.maximum(mean, -100)"),
        ("the reference point has a gradient", "jax.lax.stop_gradient(", "jnp.asarray("),
    ),
    "lm/tune/simpo.py": (
        (
            "the margin is multiplied by beta",
            "beta * (chosen - rejected) - gamma)",
            "beta * (chosen - rejected - gamma))",
        ),
    ),
    "lm/tune/orpo.py": (("odds are probabilities", " - (log1mexp(chosen) - log1mexp(rejected))", ""),),
    "lm/model/adapted.py": (
        ("the change is not scaled", "contract=a.ndim - 1) * self.scale, b)", "contract=a.ndim - 1), b)"),
        ("a merged change is not scaled", "self.dense + self.scale * jax", "self.dense + jax"),
        ("DoRA's norm has a gradient", "jax.lax.stop_gradient(column_norms", "(column_norms"),
        ("what is dropped out is not scaled up", "x / (1 - self.dropout), 0)", "x, 0)"),
    ),
    "lm/model/quantized.py": (
        (
            "the two weights of a byte are exchanged",
            "nearest[..., ::2] << 4 | nearest[..., 1::2]",
            "nearest[..., 1::2] << 4 | nearest[..., ::2]",
        ),
        (
            "blocks share the first scale",
            "self.absmax.repeat(BLOCK, axis=-1)",
            "self.absmax[..., :1].repeat(10 * BLOCK, axis=-1)",
        ),
        (
            "a scale is of an input",
            "jnp.abs(w).max(matrix_dims(axes)[0], keepdims",
            "jnp.abs(w).max(matrix_dims(axes)[1], keepdims",
        ),
        ("a value is rounded down", "(levels[1:] + levels[:-1]) / 2, scaled", "levels[1:], scaled"),
    ),
    "lm/tune/lora.py": (
        ("rsLoRA is LoRA", "math.sqrt(self.rank) if self.rslora", "self.rank if self.rslora"),
        ("layers share their dropout", "jax.random.split(key, stack) if stack else key", "jax.numpy.stack([key] * 2)"),
        ("A is as wide as for one input", "math.prod(inputs) ** -0.5", "1.0"),
        ("what is trained itself is frozen too", "axes, is_matrix) - self._full(axes)", "axes, is_matrix)"),
        ("a head of scores stays as it is", "chosen | ({SCORE} & axes.keys())", "chosen"),
    ),
    "lm/tune/partial.py": (
        ("DoRA's norm is of the base before", "dense(storage.read(base[path])), axes", "leaves[path], axes"),
        ("what is trained is frozen too", "in leaves.items() if path not in", "in leaves.items() if path or path in"),
        (
            "evaluation has dropout",
            'evaluate(self.join(params, frozen["base"])',
            'evaluate(self.join(params, frozen["base"], jax.random.key(0))',
        ),
    ),
    "lm/tune/reward.py": (
        ("a margin makes a pair easier", "chosen - rejected - margins", "chosen - rejected + margins"),
        ("both rewards are centred by themselves", "(chosen + rejected) ** 2)", "(chosen**2 + rejected**2))"),
        ("the score is read all through", '[..., 0] * tokens["ends"]', "[..., 0]"),
        ("an equal pair is right", "(chosen > rejected)", "(chosen >= rejected)"),
        ("confidence is of the chosen side", "sigmoid(jnp.abs(difference))", "sigmoid(difference)"),
    ),
    "lm/tune/sft.py": (
        ("every token is learned", "        return Replies()", "        return Pretrain().objective"),
        ("a prompt is plain text", "settings.prompts, samples.reply_prompt)", "settings.prompts)"),
    ),
    "lm/tune/distill.py": (
        ("gradients shrink with the temperature", "distill.temperature**2 * soft", "soft"),
        ("the teacher is as sharp as at temperature 1", "head, x) / self.distill.temperature)", "head, x))"),
        ("the teacher is the start", "return start, models[", "return start, start or models["),
    ),
    "lm/tune/divergence.py": (
        ("the directions are exchanged", "jnp.exp(log_q) * (log_q - log_p)\n", "jnp.exp(log_p) * (log_p - log_q)\n"),
        ("the other tokens do not count", "log_q).sum(-1) + kind.terms(others, log_rest)", "log_q).sum(-1)"),
    ),
    "lm/tune/outputs.py": (
        ("any rows are taken", "if arrays[READ][at] != _checksum(batch):", "if 0:"),
        ("a block is computed again", "if not is_complete(self._folder(block))", "if block >= 0"),
    ),
    "lm/run/models.py": (
        ("a teacher of another vocabulary is taken", "if own and not same_tokens(own, tokenizer):", "if 0:"),
        ("a teacher that changed is taken", "if opened.fingerprint() != self.fingerprint(role):", "if 0:"),
    ),
    "lm/tune/paths.py": (
        ("a name may end anywhere", "any(map(pattern.fullmatch, own))", "any(map(pattern.search, own))"),
        ("an alternative may choose nothing", "        if not found:", "        if not names:"),
    ),
    "lm/pretrained/peft_config.py": (
        ("the last pattern counts", "for key, x in patterns.items()", "for key, x in reversed(patterns.items())"),
        ("a rank that is missing is PEFT's", 'for name in ("r", "lora_alpha"', 'for name in ("lora_alpha"'),
        ("any initialisation is taken", "not in INITIAL:", "in ():"),
    ),
    "lm/pretrained/peft.py": (
        ("any name is taken", "if not name.startswith(PREFIX):", "if 0:"),
        ("DoRA's norm is of the other side", "axis = 0 if turned else 1", "axis = 1 if turned else 0"),
        (
            "an embedding's adapter changes a tied output",
            "if not model.config.shares_embedding or not touched:",
            "if 1:",
        ),
    ),
    "lm/pretrained/peft_experts.py": (
        (
            "B is by expert too",
            "rows.transpose(1, 2, 0).reshape(-1, R * E)",
            "rows.transpose(1, 0, 2).reshape(-1, R * E)",
        ),
        (
            "what is read is by expert",
            "b.reshape(len(b), rank, experts)",
            "b.reshape(len(b), experts, rank).swapaxes(1, 2)",
        ),
        ("gate and up are one after the other", "b.swapaxes(1, 2) if interleaved else b", "b"),
        ("gate and up share their rows", "column * r : (column + 1) * r] =", ":r] ="),
        ("the first parameter has the module's name", "named[0 if end else -1]", "named[-1 if end else 0]"),
    ),
    "lm/pretrained/peft_save.py": (
        ("fused matrices share their rows", "            column += len(b)\n", ""),
        ("a fused matrix keeps its alpha", "lora.alpha * (math.sqrt(n) if lora.rslora else n)", "lora.alpha"),
    ),
    "lm/run/start.py": (
        ("another model is a start", "if different := value.differences(own, theirs):", "if 0 and (different := []):"),
        ("a changed model goes unnoticed", 'changed = recorded not in ("", fingerprint)', "changed = False"),
        ("another vocabulary is taken", "if own and given and not same_", "if 0 and not same_"),
    ),
}
