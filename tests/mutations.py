"""The mistakes that tests/mutants.py makes one at a time, by file: (what is wrong, a text that occurs once in the file,
what stands in its place, and the tests that should notice, where they are not those of the file that mirrors it)."""

BY_FILE: dict[str, list[tuple[str, ...]]] = {
    "lm/data/mixture.py": [
        ("the counts do not depend on the seed", '(self._seed, "mixture"', '(0, "mixture"'),
        ("the order within a batch does not depend on the seed", '(self._seed, "batch"', '(0, "batch"'),
        ("every batch has the same order", '"batch", step', '"batch", 0'),
        ("rows before a step include its own", "[:rest].sum", "[: rest + 1].sum"),
    ],
    "lm/data/pack.py": [
        ("rows overlap by no token", "[:, None] * (width - 1)", "[:, None] * width"),
        ("pieces of a long document overlap by no token", "+ nth * seq_len, np.min", "+ nth * (seq_len + 1), np.min"),
        ("a document that fits exactly opens a new row", "bisect_left(free, length)", "bisect_left(free, length + 1)"),
        ("every epoch has one order", "self._name, purpose, epoch)", "self._name, purpose)"),
        (
            "the order of rows does not depend on the seed",
            "generator(seed, self._name, purpose",
            "generator(0, self._name, purpose",
        ),
    ],
    "lm/data/objective.py": [
        ("targets are not shifted", '"targets": rows.tokens[:, 1:]', '"targets": rows.tokens[:, :-1]'),
        ("padding is counted", "((current > 0) & (current == next_))", "(current == next_)"),
        ("the next document is predicted", "((current > 0) & (current == next_))", "((current > 0) & (next_ > 0))"),
        ("the first token after a prefix is not predicted", "(position >= lengths - 1)", "(position >= lengths)"),
        ("positions restart one token late", "index[:, 1:], 0)", "index[:, :-1], 0)"),
    ],
    "lm/data/masked.py": [
        ("control tokens are masked", " & ~context.special[tokens]", ""),
        ("masked and random tokens change shares", "= 0.8, 0.1", "= 0.1, 0.8"),
    ],
    "lm/data/denoise.py": [
        ("sentinels count upwards", "sentinel + 1 - np.cumsum", "sentinel - 1 + np.cumsum"),
        (
            "the decoder reads the target itself",
            "constant_values=DECODER_START)[:, :-1]",
            "constant_values=DECODER_START)[:, 1:]",
        ),
        ("the first sentinel is not predicted", "(position >= inputs - 1)", "(position >= inputs)"),
    ],
    "lm/data/pairs.py": [
        ("the second text begins a token late", "text.part(cut, cut + length)", "text.part(cut + 1, cut + 1 + length)"),
    ],
    "lm/data/loader.py": [
        ("a row's draws depend on its place", "int(numbers[row])", "row"),
        ("held-out draws depend on the batch size", "source, start + row)", "source, row)"),
        (
            "the last held-out batch is left out",
            "in range(0, plan.rows_per_epoch, size)",
            "in range(0, plan.rows_per_epoch - size + 1, size)",
        ),
        ("a resumed run reads from the start", "itertools.count(start)", "itertools.count()"),
    ],
    "lm/data/store.py": [
        ("bytes are counted as characters", "len(text.encode()) for text", "len(text) for text"),
        ("documents have no eos", "[] if tokenizer.eos is None else [tokenizer.eos]", "[]"),
    ],
    "lm/decode/sampling.py": [
        ("top-p leaves out the token that reaches p", "reached - mass < self.top_p", "reached < self.top_p"),
        (
            "top-k keeps one more",
            "min(self.top_k or vocab, vocab)",
            "min(self.top_k + 1 if self.top_k else vocab, vocab)",
        ),
        ("temperature multiplies", "keepdims=True)) / self.temperature", "keepdims=True)) * self.temperature"),
        ("the maximum is not subtracted", "(logits - jnp.max(logits, axis=-1, keepdims=True))", "logits"),
        ("logits stay in bfloat16", "logits.astype(jnp.float32)", "logits"),
        ("every row draws with one key", "(key, jnp.arange(rows))", "(key, jnp.zeros(rows, int))"),
        ("p is of what was sorted, not of all", "jax.nn.logsumexp(everything", "jax.nn.logsumexp(kept"),
    ],
    "lm/train/optim.py": [
        ("Adam's two decays are exchanged", "scale_by_adam(self.b1, self.b2,", "scale_by_adam(self.b2, self.b1,"),
        ("Adam's eps is dropped", "scale_by_adam(self.b1, self.b2, self.eps)", "scale_by_adam(self.b1, self.b2)"),
        ("vectors decay", "lambda axes: len(sides(axes)) >= 2", "lambda axes: len(sides(axes)) >= 1"),
        ("decay does not follow the learning rate", "*decay, rate)", "rate, *decay)"),
        ("Muon's scale has no shape", "0.2 * math.sqrt(max(rows / inputs, columns / outputs))", "0.2"),
        ("Muon's scale knows rows alone", "max(rows / inputs, columns / outputs)", "rows / inputs"),
        ("Muon's scale knows columns alone", "max(rows / inputs, columns / outputs)", "columns / outputs"),
        ("Muon's momentum is not Nesterov's", "nesterov=True", "nesterov=False"),
        ("the sign in Newton-Schulz", "-4.7750", "4.7750"),
        ("Adafactor does not clip", "if is_on(self.clip_rms)", "if False"),
        ("Adafactor's step is not relative", ", optax.scale_by_param_block_rms())", ")"),
    ],
    "lm/train/schedule.py": [
        ("the first step has a rate of zero", "(now + 1) / (self.warmup_steps + 1)", "now / (self.warmup_steps + 1)"),
        ("the decay ends below its final height", "final + (1 - final) *", "(1 - final) *"),
        ("a decay begins one step early", "start = total_steps - self", "start = total_steps - 1 - self"),
    ],
    "lm/train/loss.py": [
        ("the z-loss coefficient is ignored", "z_loss * jnp.sum(weights", "jnp.sum(weights"),
        ("the z-loss counts padding", "jnp.sum(weights * jnp.square(log_z))", "jnp.sum(jnp.square(log_z))"),
        ("accuracy counts padding", "jnp.sum(weights * (chosen", "jnp.sum((chosen"),
        ("chunks ignore what their loss is multiplied by", "(a * cotangent[0]).astype", "a.astype"),
        ("gradients of chunks add up in the parameters' dtype", "jnp.promote_types(a.dtype, jnp.float32)", "a.dtype"),
    ],
    "lm/train/state.py": [
        ("the average's decay is inverted", "(1 - decay) * (p", "decay * (p", "tests/train/test_step.py"),
    ],
    "lm/train/step.py": [
        (
            "every step has the same dropout",
            "jax.random.fold_in(jax.random.key(seed), state.step)",
            "jax.random.key(seed)",
        ),
        ("dropout ignores the seed", "fold_in(jax.random.key(seed), state", "fold_in(jax.random.key(0), state"),
        ("micro-batches share a key", "jax.random.split(key, parts)", "jnp.stack([key] * parts)"),
        ("the gradient norm is that of the updates", "optax.global_norm(grads)", "optax.global_norm(updates)"),
    ],
    "lm/train/task.py": [
        (
            "the routers' losses are left out of the total",
            "total += sum(losses.values()) * share",
            "total += 0",
            "tests/train/test_loss.py tests/train/test_step.py",
        ),
        (
            "the routers' losses count once a micro-batch",
            "total += sum(losses.values()) * share",
            "total += sum(losses.values())",
            "tests/train/test_loss.py tests/train/test_step.py",
        ),
        (
            "padding is seen",
            "key_segments=segments, prefix",
            "key_segments=None, prefix",
            "tests/train/test_loss.py tests/train/test_step.py",
        ),
    ],
    "lm/train/loop.py": [
        ("a resumed run repeats a step", "int(state.step) + 1", "int(state.step)"),
        ("metrics are outstanding at a visit", "read(0 if paused else AHEAD)", "read(AHEAD)"),
    ],
    "lm/train/checkpoint.py": [
        ("one more checkpoint is kept", "steps[-self.keep_last :]", "steps[-self.keep_last - 1 :]"),
        (
            "the highest loss is the best",
            "sorted(scored, key=self._score_of)",
            "sorted(scored, key=self._score_of, reverse=True)",
        ),
        ("the checksum ignores order", "(2 * place + 1)", "1"),
    ],
    "lm/train/program.py": [
        ("the schedule is a step ahead", "jnp.minimum(step, len", "jnp.minimum(step + 1, len"),
        ("the seed is not passed on", '(state, batch, data["seed"])', "(state, batch, 0)"),
    ],
    "lm/train/word2vec.py": [
        ("random tokens attract", "jax.nn.log_sigmoid(-far)", "jax.nn.log_sigmoid(far)"),
        (
            "noise is drawn by the count",
            "np.cumsum(counts**0.75) / (counts**0.75).sum()",
            "np.cumsum(counts) / counts.sum()",
        ),
    ],
}
