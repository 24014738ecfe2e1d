"""The mistakes that tests/mutants.py makes, one at a time: what is wrong, a text that occurs once in the file, and what
stands in its place."""


def of(file: str, *names: str) -> tuple[str, ...]:
    """Tests of a file by name, as pytest has them."""
    return tuple(f"tests/{file}.py::test_{name}" for name in names)


KERNELS = of(
    "model/test_attention",
    *("causal", "windows", "segments_and_bias", "bias_cap_and_sinks", "bfloat16_logits_are_summed_in_float32"),
    "every_kernel_has_the_gradients_of_the_plain_one",
)
CACHED = of("model/test_transformer", "rows_of_a_cache_are_at_offsets_of_their_own")
DEFAULTS = ("tests/pretrained/test_defaults.py",)
RECORDED = of("pretrained/test_recorded", "the_logits_are_the_recorded_ones")
SCORED = of("pretrained/test_scores", "a_text_is_scored_at_its_end_whatever_is_beside_it")

# The tests that are to notice, where these are not all of the file that mirrors lm's.
TESTS = {
    "lm/model/compute.py": of("train/test_program", "a_kernel_s_share_of_vector_memory_is_the_compiler_s_to_know"),
    "lm/train/state.py": of("train/test_step", "the_average_follows_the_parameters"),
    "lm/train/step.py": of(
        "train/test_step",
        *("the_metrics_are_the_batch_s", "dropout_s_keys_come_from_the_seed_and_the_step"),
        "each_micro_batch_has_a_key_of_its_own",
    )
    + of("train/test_program", "a_kernel_s_share_of_vector_memory_is_the_compiler_s_to_know")
    + of(
        "tune/test_method",
        *("a_rollout_follows_from_seed_step_and_parameters", "what_is_frozen_is_sharded_and_handed_on"),
    ),
    "lm/tune/pretrain.py": (
        *("tests/train/test_loss.py", "tests/tune/test_pretrain.py", "tests/model/test_multi_token.py"),
    ),
    "lm/pretrained/defaults.py": DEFAULTS,
    "lm/pretrained/fields.py": DEFAULTS,
    "lm/pretrained/rope.py": DEFAULTS,
    "lm/pretrained/llama.py": DEFAULTS,
    "lm/pretrained/gemma.py": DEFAULTS,
    "lm/pretrained/t5.py": DEFAULTS,
    "lm/pretrained/bert.py": ("tests/pretrained/test_halves.py",),
    "lm/pretrained/model.py": ("tests/pretrained/test_halves.py",) + SCORED + RECORDED,
    "lm/pretrained/files.py": ("tests/pretrained/test_bad.py",),
    "lm/model/scoring.py": (*KERNELS, "tests/decode/test_mesh.py", "tests/model/test_merged.py"),
    "lm/model/flash.py": KERNELS,
    "lm/model/kernels.py": ("tests/model/test_attention.py",),
    "lm/model/attention.py": CACHED + RECORDED,
    "lm/model/ragged.py": ("tests/model/test_experts.py",),
    "lm/model/cache.py": (*CACHED, "tests/decode/test_mesh.py"),
    "lm/model/latent.py": of(
        "model/test_latent",
        *("logits_are_the_paper_s", "absorbed_or_expanded_it_is_the_same", "what_is_cheaper_is_done"),
    )
    + of("model/test_remat", "what_a_mixer_says_is_what_is_kept"),
    "lm/model/delta_rule.py": of(
        "model/test_delta",
        *("chunks_are_the_recurrence", "one_token_after_the_other_is_the_recurrence"),
        "padding_between_and_before_documents_is_not_read",
    ),
    "lm/model/delta.py": of(
        "model/test_delta",
        *("logits_are_the_paper_s", "padding_between_and_before_documents_is_not_read"),
        "padding_leaves_a_row_as_it_is",
    ),
    "lm/model/inputs.py": of("train/test_loss", "a_document_s_loss_is_its_own") + ("tests/decode/test_images.py",),
    "lm/model/output.py": of("model/test_transformer", "bfloat16_is_close_to_float32")
    + RECORDED
    + ("tests/model/test_scores.py", "tests/pretrained/test_labels.py"),
    "lm/model/parts.py": ("tests/model/test_parts.py",)
    + of("model/test_transformer", "a_fresh_model_knows_nothing_but_keeps_its_scale"),
    "lm/model/scaling.py": ("tests/model/test_positions.py",),
    "lm/model/stack.py": of("model/test_transformer", "dropout_of_a_layer_does_not_depend_on_the_pattern")
    + of("inspect/test_look", "layers_of_two_kinds_are_in_their_order", "an_edit_is_of_its_layer_heads_and_positions")
    + of("model/test_experts", "losses_are_means_over_the_layers"),
    "lm/model/transformer.py": CACHED
    + ("tests/model/test_scores.py",)
    + of("launch/test_imports", "to_declare_an_experiment_starts_no_device"),
    "lm/model/wiring.py": ("tests/model/test_parts.py",) + RECORDED,
}

BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lm/train/optim.py": (
        ("b1 and b2 are exchanged", "scale_by_adam(self.b1, self.b2,", "scale_by_adam(self.b2, self.b1,"),
        ("eps is dropped", "scale_by_adam(self.b1, self.b2, self.eps)", "scale_by_adam(self.b1, self.b2)"),
        ("vectors decay", "lambda axes: len(matrix_dims(axes)) >= 2", "lambda axes: len(matrix_dims(axes)) >= 1"),
        ("decay is not multiplied by the rate", "*decay, rate)", "rate, *decay)"),
        ("Muon's scale does not depend on the shape", "0.2 * math.sqrt(max(rows / inputs, columns / outputs))", "0.2"),
        ("Muon's scale takes the rows", "max(rows / inputs, columns / outputs)", "rows / inputs"),
        ("Muon's scale takes the columns", "max(rows / inputs, columns / outputs)", "columns / outputs"),
        ("Muon's momentum is not Nesterov's", "nesterov=True", "nesterov=False"),
        ("a sign of Newton-Schulz", "-4.7750", "4.7750"),
        ("Adafactor does not clip", "if is_enabled(self.clip_rms)", "if False"),
        ("Adafactor's rate is not relative", ", optax.scale_by_param_block_rms())", ")"),
    ),
    "lm/train/schedule.py": (
        ("the first rate is zero", "(now + 1) / (self.warmup_steps + 1)", "now / (self.warmup_steps + 1)"),
        ("a decay ends below its final height", "final + (1 - final) *", "(1 - final) *"),
        ("a decay begins one step early", "return total_steps - self", "return total_steps - 1 - self"),
    ),
    "lm/train/loss.py": (
        ("the coefficient of the z-loss is ignored", "z_loss * jnp.sum(weights", "jnp.sum(weights"),
        ("the z-loss counts padding", "jnp.sum(weights * jnp.square(log_z))", "jnp.sum(jnp.square(log_z))"),
        ("the accuracy counts padding", "jnp.sum(weights * (chosen", "jnp.sum((chosen"),
        ("chunks ignore the cotangent", "(a * cotangent[0]).astype", "a.astype"),
        ("gradients of chunks are summed in bfloat16", "jnp.promote_types(a.dtype, jnp.float32)", "a.dtype"),
    ),
    "lm/train/state.py": (("the decay of the average is inverted", "(1 - decay) * (p", "decay * (p"),),
    "lm/train/step.py": (
        ("a step is compiled without its options", "compiler_options=learner.model.compute.compiler_options", "**{}"),
        ("every step has one key", "jax.random.fold_in(jax.random.key(seed), state.step)", "jax.random.key(seed)"),
        ("keys do not depend on the seed", "fold_in(jax.random.key(seed), state", "fold_in(jax.random.key(0), state"),
        ("micro-batches share a key", "jax.random.split(key, parts)", "jnp.stack([key] * parts)"),
        ("the gradient norm is that of the updates", "optax.global_norm(grads)", "optax.global_norm(updates)"),
        ("every step has one rollout", "np.uint32(ROLLOUTS)), step)", "np.uint32(ROLLOUTS)), 0)"),
        (
            "rollouts do not depend on the seed",
            "fold_in(jax.random.key(seed), np.uint32",
            "fold_in(jax.random.key(0), np.uint32",
        ),
        (
            "frozen parameters are updated",
            "frozen = learner.advance(state.frozen, batch)",
            "frozen = learner.advance(state.params if state.frozen else (), batch)",
        ),
    ),
    "lm/tune/pretrain.py": (
        ("bits per byte are nats", "/ store.coded_bytes / math.log(2)", "/ store.coded_bytes"),
        ("the first tokens of documents are coded too", "store.total_tokens - len(store)", "store.total_tokens"),
        ("routers' losses are left out", "total += sum(losses.values()) * share", "total += 0"),
        ("each micro-batch has all of routers' losses", "sum(losses.values()) * share", "sum(losses.values())"),
        ("modules predict where they have no state", 'batch["weights"] * (one.segments > 0)', 'batch["weights"]'),
        ("modules are summed", "total * (config.weight / len(ahead))", "total * config.weight"),
        ("modules' routers weigh apart", "total += loss + sum(one.losses.values()) * share", "total += loss"),
        ("modules' output has the model's norm", '{**output["head"], **one.head}', 'output["head"]'),
    ),
    "lm/train/loop.py": (
        ("a resumed run repeats a step", "int(state.step) + 1", "int(state.step)"),
        ("metrics are outstanding in a pause", "read(0 if paused else ahead)", "read(ahead)"),
        ("a rollout is of another step", "rollout(n - 1, state", "rollout(n, state"),
    ),
    "lm/train/checkpoint.py": (
        ("one more checkpoint is kept", "steps[-self.keep_last :]", "steps[-self.keep_last - 1 :]"),
        ("the highest loss is the best", "key=known.__getitem__)", "key=known.__getitem__, reverse=True)"),
        ("the checksum ignores the order", "(2 * position + 1)", "1"),
    ),
    "lm/train/program.py": (
        ("options are no part of what is compiled", '(repr(options) if options else "")', '""'),
        ("the schedule is a step ahead", "jnp.minimum(step, len", "jnp.minimum(step + 1, len"),
        ("the seed is not passed on", '(state, batch, data["seed"])', "(state, batch, 0)"),
        ("runs side by side are compiled without options", "compiler_options=options", "**{}"),
    ),
    "lm/train/word2vec.py": (
        ("random tokens attract", "jax.nn.log_sigmoid(-negative)", "jax.nn.log_sigmoid(negative)"),
        ("noise is drawn by the count", "np.cumsum(counts**0.75) / (counts**0.75)", "np.cumsum(counts) / counts"),
    ),
    "lm/model/inputs.py": (
        ("documents see one another", "Mask(self.segments, self.segments, offset", "Mask(self.segments, None, offset"),
        ("the prefix is seen from its own place on", "self.blocks, self.blocks, causal", "self.blocks, None, causal"),
        ("an image behind a cache is read in order", "if self.blocks is None:", "if True:"),
        ("padding is of an image", "jnp.where(self.segments > 0, self.blocks, 0)", "self.blocks"),
    ),
    "lm/model/scoring.py": (
        ("a window is one key wider", "near = -distance < self.window", "near = -distance <= self.window"),
        ("as many are seen behind", "window if self.window_after is None else self.window_after", "window"),
        ("a query does not see itself", "earlier = distance <= (0", "earlier = distance <= (-1"),
        ("segments are ignored", "else allowed & same", "else allowed"),
        ("a block's keys begin one late", "first + self.offset - behind", "first + self.offset + 1 - behind"),
        (
            "groups of heads are interleaved",
            "K, N // K, H).transpose(0, 2, 3, 1, 4)\n    k, v = (a.astype(compute.matmul).transpose",
            "N // K, K, H).transpose(0, 3, 2, 1, 4)\n    k, v = (a.astype(compute.matmul).transpose",
        ),
        ("the cap is not divided by", "jnp.tanh(logits / self.softcap)", "jnp.tanh(logits)"),
        ("the sink has no share", "(0 if nothing is None else nothing)", "0"),
        ("tokens that are not in the cache yet are not seen", "(outs[0] + outs[1]) / total", "outs[0] / total"),
        ("a sign of the softmax's gradient", ", v) - along)", ", v) + along)"),
        ("products are summed in bfloat16", "(letters, a, b, preferred_element_type=jnp.float32)", "(letters, a, b)"),
    ),
    "lm/model/flash.py": (
        ("padding of the last block is seen", "columns.index < self.length", "columns.index <= self.length"),
        ("earlier blocks are not rescaled", "out * shrink + part", "out + part"),
    ),
    "lm/model/kernels.py": (
        ("the kernel in C is for nothing", "if short and takes(", "if short and not takes("),
        ("the kernel in C is for float32 products", "takes(scoring, exact,", "takes(scoring, compute,"),
    ),
    "lm/model/context.py": (("the second chunk is one early", "(c, 2 * shards - 1 - c)", "(c, 2 * shards - 2 - c)"),),
    "lm/model/attention.py": (
        ("logits are scaled by 1/H", "self.head_dim**-0.5)", "self.head_dim**-1)"),
        ("keys are not normalised", 'self.qk_norm(module, "key_norm", k)', "k"),
        ("the cache holds keys as values", "cache.read((k, v)", "cache.read((k, k)"),
    ),
    "lm/model/cache.py": (
        ("the first layer of a stack is all", "self.layer, keepdims=False", "0, keepdims=False"),
        (
            "a token is one place late",
            "_by_row(offset, B)[:, None] + jnp.ar",
            "_by_row(offset, B)[:, None] + 1 + jnp.ar",
        ),
        (
            "a windowed cache is one token short",
            "min(length, window or length)",
            "min(length, window - 1 if window else length)",
        ),
        (
            "a ring's places are one late",
            "last - (last - jnp.arange(self.size)) %",
            "last - (last + 1 - jnp.arange(self.size)) %",
        ),
        ("padding is kept in a ring", "(segments > 0).sum(1)", "jnp.full((rows,), T)"),
    ),
    "lm/model/latent.py": (
        ("latents are not normalised", 'self.norm(module, "kv_norm", latent)', "latent"),
        ("logits are scaled by the part without positions", "self.qk_head_dim**-0.5", "self.qk_nope_head_dim**-0.5"),
        ("queries and keys are not rotated", "positions.rotate(a, inputs.table, compute)", "a"),
        ("many queries absorb", "< self.kv_lora_rank * head", "< 2 * self.kv_lora_rank * head"),
        ("the rotated key is read as a value", "[..., : self.kv_lora_rank]", "[..., -self.kv_lora_rank :]"),
        ("low ranks are no activations", "self.qk_head_dim + self.q_lora_rank, key=key", "self.qk_head_dim, key=key"),
    ),
    "lm/model/delta_rule.py": (
        ("a token corrects itself", "_matmul(k, k.swapaxes(-1, -2)), -1)", "_matmul(k, k.swapaxes(-1, -2)), 0)"),
        ("a sign of a block's inverse", "corner = -_matmul(", "corner = _matmul("),
        ("the state does not decay within a chunk", "[v, past * k]", "[v, k]"),
        ("another document's state is kept", "same & jnp.tri(C, C + 1, 1", "jnp.tri(C, C + 1, 1"),
    ),
    "lm/model/delta.py": (
        ("a convolution reads another document", "jnp.where(same[..., None, None], part, 0)", "part"),
        ("the state grows", "g = -jnp.exp(", "g = jnp.exp("),
        ("queries are not scaled", "q * self.key_dim**-0.5", "q"),
        (
            "groups of heads are interleaved",
            "jnp.repeat(_unit(a), self.value_heads // self.key_heads, axis=2)",
            "jnp.tile(_unit(a), (1, 1, self.value_heads // self.key_heads, 1))",
        ),
        ("padding decays the state", "if rows.real is not None:", "if False:"),
    ),
    "lm/model/stack.py": (
        ("layers are in the order of their slots", "if (np.diff(order) > 0).all() else", "if True else"),
        ("layers are numbered within their slot", "slot.layers.start + slot.layers.step * j)", "j)"),
        ("slots share the keys of dropout", "every[first + p :: P]", "every[first::P]"),
        ("losses of layers are summed", "if name in piece]).mean()", "if name in piece]).sum()"),
    ),
    "lm/model/positions.py": (
        ("halves are exchanged", "[a * cos - b * sin, b * cos + a * sin]", "[b * cos + a * sin, a * cos - b * sin]"),
        (
            "pairs are neighbours",
            "a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)",
            "a, b = x[..., ::2], x[..., 1::2]",
        ),
        ("the gradient is not turned back", "(g, cos, -sin, compute)", "(g, cos, sin, compute)"),
        ("ALiBi's slopes begin at 1", "2.0 ** (-8 * (i + 1) / below)", "2.0 ** (-8 * i / below)"),
        ("padding's rows are positions", "x, positions + self.offset, context", "x, positions, context"),
        ("a token itself is a later key", "jnp.where(distances > 0,", "jnp.where(distances >= 0,"),
    ),
    "lm/model/scaling.py": (
        (
            "Llama 3 slows the fast pairs",
            "(1 - keep) * angles / self.factor + keep *",
            "keep * angles / self.factor + (1 - keep) *",
        ),
        ("YaRN's attention factor is dropped", "angles * (1 - ramp), size", "angles * (1 - ramp), 1.0"),
    ),
    "lm/model/parts.py": (
        ("RMSNorm has no eps", "keepdims=True) + self.eps) * (scale", "keepdims=True)) * (scale"),
        ("RMSNorm adds no 1 to its scale", "(scale + float(self.plus_one))", "scale"),
        ("LayerNorm computes in bfloat16", "x.astype(jnp.float32)\n        mean", "x\n        mean"),
        ("RMSNorm computes in bfloat16", "x.astype(jnp.float32)\n        y = y *", "x\n        y = y *"),
        ("gate and up are exchanged", "gate, up = parts", "up, gate = parts"),
        ("dropout does not scale up", "x / (1 - rate), 0", "x, 0"),
        ("first values fall with the inputs, not their root", "scale / inputs**0.5", "scale / inputs"),
        ("matrices of one shape start as copies", 'rngs["params"], name)', 'rngs["params"], "")'),
    ),
    "lm/model/output.py": (
        ("logits are rounded to bfloat16", ".astype(jnp.float32)\n        if self.bias", "\n        if self.bias"),
        ("the scale is dropped", "x = x * self.scale", "pass"),
        ("scores are rounded to bfloat16", "x.astype(jnp.float32), kernel", "x, kernel.astype(x.dtype)"),
        ("the first scores are as wide as logits", "fan_in(D + 1)", "fan_in(1)"),
        ("a score is read on padding", "is_token.sum(1) - 1]", "-1]"),
        ("padding counts for a mean", "* weights).sum(1) / weights.sum(1)", ").mean(1)"),
        ("classes have no bias", "(None,)) if self.bias else scores", "(None,)) if 0 else scores"),
    ),
    "lm/model/wiring.py": (
        (
            "PostNorm does not normalise the stream",
            'x = norm(module, f"{name}_norm", x + tap(module, OUTPUTS[name], sublayer(x)))',
            'x = x + norm(module, f"{name}_norm", tap(module, OUTPUTS[name], sublayer(x)))',
        ),
        ("Parallel runs in sequence", "OUTPUTS[name], sublayer(y)))", "OUTPUTS[name], sublayer(x)))"),
        ("the feed-forward reads what the model's norm gives", 'if self.ffn_norm and name == "ffn" else', "if 0 else"),
        ("a bare attention is not added", 'x + tap(module, OUTPUTS["attention"]', 'tap(module, OUTPUTS["attention"]'),
    ),
    "lm/model/experts.py": (
        ("weights are those of the softmax over all", "top if self.renormalize else logits", "logits"),
        ("the balance loss is not times the experts", "self.load_balance_weight * E *", "self.load_balance_weight *"),
        ("outputs stay in the experts' order", "[jnp.argsort(order)].reshape", "[order].reshape"),
        (
            "the router computes in bfloat16",
            "x.astype(jnp.float32) @ router.astype(jnp.float32)",
            "x @ router.astype(x.dtype)",
        ),
    ),
    "lm/model/ragged.py": (
        ("a block's rows of the next run count for its matrix", "jnp.arange(size) < length", "jnp.arange(size) < size"),
        (
            "a block begins where its run ends",
            "(block - block_ends[run] + blocks[run])",
            "(block - block_ends[run] + 1)",
        ),
        ("a block has the matrix before its own", "(block_ends <= block).sum()", "(block_ends < block).sum()"),
        ("the last rows are another block's", "jnp.pad(rows, ((0, size), (0, 0)))", "rows"),
        (
            "rows' gradients are by the matrix as it is",
            "sizes, not transposed, compute)",
            "sizes, transposed, compute)",
        ),
    ),
    "lm/model/parametrisation.py": (
        ("a tied output grows", "scale * (self.base_width / width)", "scale * (width / self.base_width)"),
        ("an output begins as a hidden matrix", "value * inputs**-0.5 if", "value if"),
    ),
    "lm/model/transformer.py": (
        ("shapes start the devices", "jax.eval_shape(jax.random.key, 0)", "jax.random.key(0)"),
        ("positions behind a cache begin at 0", "jnp.arange(T) + start", "jnp.arange(T)"),
        ("padding lengthens a row", "T) if inputs.segments is None else (inputs.segments > 0).sum(1)", "T)"),
        ("a bias behind a cache begins at 0", "else cache.size) - offset", "else cache.size)"),
        ("a head that is there is drawn again", '{**head, **params["head"]}', '{**params["head"], **head}'),
    ),
    "lm/pretrained/fields.py": (
        ("null is the default", "return None if name in self.values else known.default", "return known.default"),
        (
            "null is taken where its class refuses it",
            "if name in self.values:\n            raise",
            "if 0:\n            raise",
        ),
    ),
    "lm/pretrained/defaults.py": (
        (
            "Mistral has no window",
            "max_position_embeddings=131072,\n    sliding_window=Nullable(4096)",
            "max_position_embeddings=131072,\n    sliding_window=Nullable()",
        ),
        ("Qwen 3's heads are cut from the width", "QWEN2 | dict(head_dim=128, ", "QWEN2 | dict("),
    ),
    "lm/pretrained/rope.py": (
        ("the context is never longer", "if context == original else context", "if 0 else context"),
        (
            "rope_scaling that contradicts is passed over",
            "if new and _plain(new, fields)",
            "if 0 and _plain(new, fields)",
        ),
        ("theta beside a scaling is passed over", '{"rope_theta": fields.take("rope_theta"), ', "{"),
    ),
    "lm/pretrained/llama.py": (
        (
            "a window that is not used is",
            'fields.flag("use_sliding_window") and',
            'fields.flag("use_sliding_window") or',
        ),
        ("gpt-oss is never scaled by itself", "if rope.parameters(fields) is None:", "if 0:"),
    ),
    "lm/pretrained/gemma.py": (
        ("the text's own flag ties", '{**text, "tie_word_embeddings": tied}', '{"tie_word_embeddings": tied, **text}'),
        ("both halves have one theta", '(fields, "rope_local_base_freq")', '(fields, "rope_theta")'),
    ),
    "lm/pretrained/t5.py": (
        ("dense_act_fn is passed over", 'fields.choose("dense_act_fn", ACTIVATION, act)', "ACTIVATION[act]"),
        (
            "the output is scaled where it is tied",
            'fields.flag("scale_decoder_outputs", tied and "scale_decoder_outputs" not in fields.values)',
            "tied",
        ),
    ),
    "lm/pretrained/bert.py": (
        (
            "an untied output adds the tied one's bias",
            'if cfg.tied else [same("head/bias", second)',
            'if 1 else [same("head/bias", second)',
        ),
    ),
    "lm/pretrained/model.py": (
        ("scores are in the order of lengths", "zip(block, np.asarray(", "zip(range(start, len(rows)), np.asarray("),
        ("padding counts for RoBERTa's positions", "or self.config.positions.counts_padding", "or 1"),
        ("what is unused is lost", "self.unused if architecture == self.architecture else {}", "{}"),
    ),
    "lm/pretrained/files.py": (
        ("an index comes first", "if names and (SINGLE in names or not (path / SINGLE).is_file()):", "if names:"),
        ("a tensor may be in two shards", "if name in self.tensors:", "if 0:"),
    ),
    "lm/text/gguf.py": (
        ("only keys say what ends a text", "[*stops, *end_ids(_tokens(metadata))]", "stops"),
        ("the end of a message ends the turn", "present -= {MESSAGE_END}", "pass"),
        ("an end is an ordinary token", "types[id] = sentence.CONTROL", "pass"),
    ),
    "lm/text/gguf_export.py": (
        ("merged words have any name", "vocabulary.ignore_merges in (None, name in IGNORE_MERGES)", "True"),
        ("ends without a name are lost", 'not in (roles["eos"], *end_ids(tokens))', "in ()"),
        ("llama.cpp's own end is taken", 'if "eos" not in roles and', "if 0 and"),
    ),
    "lm/pretrained/gguf_save.py": (
        ("an output of its own is passed over", "if kind.always_tied and not cfg.tied:", "if 0:"),
        ("vectors are rounded", "len(tensor.shape) == 1 or tensor.name", "tensor.name"),
        ("a number beyond float16 is infinite", "if limit < np.inf and not", "if 0 and not"),
        (
            "Llama 3.1's divisors are upside down",
            "(1 / ((1 - keep) / s.factor + keep))",
            "((1 - keep) / s.factor + keep)",
        ),
        (
            "linear scaling has no original context",
            'config["original_max_position_embeddings"] = config["max_',
            'config["_"] = config["max_',
        ),
    ),
}
