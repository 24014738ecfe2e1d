"""The mistakes of tests/mutations.py in decoding, grammars, stop strings and filling gaps."""

from tests.mutations import of

TESTS = {
    "lm/decode/beam.py": of(
        "decode/test_beam",
        *(
            "texts_and_scores_are_the_recorded_ones[LlamaForCausalLM]",
            "all_beams_that_there_are_find_the_best_of_all_texts",
        ),
        "a_prompt_is_searched_as_if_it_were_alone",
    ),
    "lm/decode/speculative.py": of(
        "decode/test_speculative",
        *("a_verified_token_has_the_target_s_distribution", "a_distribution_counts_the_drafted_tokens_before_it"),
        "a_draft_model_forgets_what_was_rejected",
        *(
            "a_look_up_gives_what_followed_the_longest_and_newest_match",
            "greedy_texts_are_those_of_plain_decoding[windowed]",
        ),
        *("greedy_texts_by_a_draft_model_are_those_of_plain_decoding", "a_text_ends_at_its_stop_token_or_length"),
        "texts_have_the_distribution_of_plain_decoding[top-p-False]",
    ),
    "lm/decode/filters.py": ("tests/decode/test_sampling.py",),
    "lm/serve/structured.py": of("serve/test_routes", "texts_are_those_of_the_grammar", "a_chat_is_refused_by_name"),
    "lm/decode/layout.py": ("tests/decode/test_layout.py", "tests/model/test_int8.py"),
    "lm/model/native.c": ("tests/model/test_native.py", "tests/model/test_int8.py"),
    "lm/model/native.py": ("tests/model/test_native.py", "tests/model/test_int8.py"),
    "lm/machine/native.py": ("tests/model/test_int8.py",),
}
BY_FILE = {
    "lm/text/stop.py": (
        (
            "a stop string is shown in part",
            "return self._show(len(self._held) - self._undecided())",
            "return self.close()",
        ),
        ("the first of the list ends the text", "min(ends)", "ends[0]"),
        ("the stop string is shown", "return self._show(at, rest", "return self._show(at + len(self.found), rest"),
    ),
    "lm/decode/grammar.py": (
        ("what must come has one tokenization", '"no_forcing": true', '"no_forcing": false'),
        ("whitespace has no end", '{"whitespace_pattern": WHITESPACE}', "{}"),
        ("a text never begins with a space", "grammar.source(self._strips and not continues)", "grammar.source(False)"),
        ("a text may end anywhere", "return self.failed or not self._parser.is_stopped()", "return True"),
        ("texts share a parser", "self._parser.deep_copy()", "self._parser"),
        ("a failure allows everything", "np.zeros(self._words, np.uint32) if self.failed else found", "found"),
    ),
    "lm/serve/structured.py": (
        ("any object is any text", "JsonSchema(ANY_OBJECT) if kind", "None if kind"),
        (
            "the first of two kinds counts",
            'if len(asked) > 1:\n        bad("structured',
            'if False:\n        bad("structured',
        ),
    ),
    "lm/pretrained/fill.py": (
        (
            "control ids are plain text",
            "tokenizer.encode_prompt(text, parse_special=True)",
            "tokenizer.encode_prompt(text)",
        ),
        ("every mask gets the first one's token", "int(row[0])", "int(best[0][0])"),
        ("sentinels cannot be written", "*(id + 1 for id in sentinels.values()))", "0)"),
        ("the encoder reads no eos", "ids + [tokenizer.eos] if", "ids if"),
    ),
    "lm/decode/beam.py": (
        ("no room for beams that end", "(1 + max(1, len(stop))) * K)", "K)"),
        ("an end far down is a text", "ends & (jnp.arange(ends.shape[1]) < K)", "ends"),
        (
            "the stop id is not counted",
            "scores / lengths.penalty[state.step]",
            "scores / lengths.penalty[state.step - 1]",
        ),
        ("never is as False", 'search.early_stopping == "never" and', "False and"),
        ("texts are of other beams", "texts = _take(", "texts = (lambda a, _: a[:, :K])("),
        ("caches stay with their row", "beams + state.source)", "beams + jnp.arange(beams))"),
        ("ids that are not in the tokenizer", "jnp.arange(V) < vocab_size", "jnp.arange(V) < V"),
        ("a prompt waits for the others", "jnp.where(state.open[:, None], finished", "jnp.where(True, finished"),
    ),
    "lm/decode/speculative.py": (
        ("every draft is accepted", "uniform * q < p, axis=1", "uniform * q < p + 9, axis=1"),
        ("what is rejected may come again", "jnp.maximum(p - q, 0)", "p"),
        ("a draft behind a rejected one is accepted", "jnp.cumprod(uniform * q < p, axis=1)", "(uniform * q < p)"),
        ("drafts are not filtered", "sampling.process(logits, counts)", "logits / sampling.temperature"),
        ("drafted tokens are not counted", "return counts and counts.add(token), dist", "return counts, dist"),
        ("the cache keeps what was rejected", "cache, length=after.length - 1)", "cache, length=cache.length)"),
        ("the draft's cache keeps what was rejected", "(state, length=length)", "(state, length=state.length)"),
        ("the last draft is not in the cache", "jnp.arange(self.tokens + 1))", "jnp.arange(self.tokens))"),
        ("windows are rings", "(B, max_length, rings=False)", "(B, max_length)"),
        ("the oldest match", "tokens.shape[1] + places, axis", "tokens.shape[1] - places, axis"),
        ("the text ends after its stop token", "return tokens[:end]", "return tokens[: end + 1]"),
    ),
    "lm/decode/filters.py": (
        (
            "top-p leaves out the token that reaches p",
            "_fewest(logits, jax.nn.softmax(logits), p)",
            "_fewest(logits, jax.nn.softmax(logits), p - 0.1)",
        ),
        (
            "top-k keeps one more",
            "_fewest(logits, jnp.ones_like(logits), k, threshold)",
            "_fewest(logits, jnp.ones_like(logits), k + 1)",
        ),
        ("all ties are kept", "level & (first >= needed)", "level"),
        (
            "the last of equal ones are kept",
            "jnp.arange(keys.shape[-1], 0, -1, dtype=jnp.uint32)",
            "jnp.arange(keys.shape[-1], dtype=jnp.uint32)",
        ),
        ("typical is what is likeliest", "-jnp.abs(log_p + entropy)", "log_p"),
        (
            "min-p is of 1, not of the likeliest",
            "jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p)",
            "jax.nn.logsumexp(logits, -1, keepdims=True) + jnp.log(p)",
        ),
        (
            "a repeated token is made likelier where negative",
            "logits / penalty, logits * penalty",
            "logits / penalty, logits / penalty",
        ),
        ("the prompt is not penalized", "counts.prompt + counts.new > 0", "counts.new > 0"),
        ("frequency counts once", "- frequency * counts.new", "- frequency * (counts.new > 0)"),
        ("padding is counted", "(segments > 0).astype(jnp.int32)", "jnp.ones_like(tokens)"),
    ),
    "lm/decode/sampling.py": (
        ("temperature multiplies", "keepdims=True)) / self.temperature", "keepdims=True)) * self.temperature"),
        (
            "the maximum is not subtracted",
            "logits = (logits - jnp.max(logits, axis=-1, keepdims=True))",
            "logits = logits",
        ),
        ("logits stay in bfloat16", "logits = logits.astype(jnp.float32)", "logits = logits"),
        ("rows share a key", "(key, jnp.arange(rows))", "(key, jnp.zeros(rows, int))"),
        ("block and token are drawn with one number", "uniform[:, 1])", "uniform[:, 0])"),
        ("what is forbidden can be drawn", "reached > uniform", "reached >= uniform"),
        ("NaN gives a token", "jnp.isfinite(most), chosen, NONE", "jnp.isfinite(most), chosen, chosen"),
        ("a bias replaces the logit", "jnp.array(tokens)].add(", "jnp.array(tokens)].set("),
    ),
    "lm/model/int8.py": (
        ("the largest weight is 128", ".max(1) / 127", ".max(1) / 128"),
        ("all outputs share a scale", "jnp.abs(flat).max(1)", "jnp.full(len(flat), jnp.abs(flat).max())"),
        ("what it stands for is not scaled", " * self.scale[:, None]", ""),
        (
            "what stands for the weights lies across",
            "weights.T.reshape",
            "weights.reshape",
        ),
    ),
    "lm/model/native.c": (
        ("the last numbers of a row are left out", "if (k < job->K) step", "if (k > job->K) step"),
        ("outputs that are no whole tile are left out", "one < end; one++", "one < out; one++"),
        ("four outputs share a scale", "m->scale[out + j]", "m->scale[out]"),
        (
            "rows of four and the others differ",
            "block(job, m, row, out, kind, 1, VECTORS)",
            "block(job, m, 0, out, kind, 1, VECTORS)",
        ),
        ("the last inputs are left out", "if (k < job->K) slab", "if (k > job->K) slab"),
        ("the last outputs are left out", "if (out < end) tiles", "if (out > end) tiles"),
        ("matrices share their first task", "at >= m->tasks; m++) at -= m->tasks", "at >= m->tasks; m++) at = 0"),
        ("a running softmax forgets what it had", "have->out[j] *= shrink", "have->out[j] *= 1"),
        ("a running softmax forgets its sum", "have->total *= shrink", "have->total *= 1"),
        ("keys that are hidden are looked at", "if (!allowed[s]) {", "if (0) {"),
        ("what is not a number is zero", "~(words)(x <= -87.f)", "(words)(x > -87.f)"),
        ("attention to nothing is not a number", "have[i].total > 0 ? 1 / have[i].total : 0", "1 / have[i].total"),
    ),
    "lm/model/native.py": (("more matrices than a call takes are one", "ws[first : first + MOST]", "ws[:MOST]"),),
    "lm/machine/native.py": (
        ("a compiler's errors are the user's", "except (OSError, subprocess.CalledProcessError):", "except OSError:"),
    ),
    "lm/decode/layout.py": (
        ("8 bits of the wrong axes", "out=2", "out=1"),
        (
            "an embedding is copied to be the output",
            "Streamed(w.astype(weights), w.shape)",
            "Streamed(w.astype(weights) + 0, w.shape)",
        ),
        ("experts are one product", "type(slot.ffn) is FeedForward", "True"),
        ("weights are joined at every step", 'unroll=0, flat="no"', "unroll=0"),
        ("layers are copies", "put(view[i])", "stacked[i]"),
        ("layers are one off", "put(view[i])", "put(view[i - 1])"),
        ("a layer forgets its device", "device if stacked.committed else None", "None"),
    ),
    "lm/decode/generate.py": (
        ("every token is drawn with one key", "_keys_at(state.keys, cache.length)", "state.keys"),
        ("the drawn tokens are not counted", "state.counts.add(drawn) if state.counts", "state.counts if state.counts"),
        ("two tokens are drawn with one key", "(state.keys, cache.length)", "(state.keys, cache.length // 2)"),
        (
            "keys depend on the padding",
            "_keys_at(keys, cache.length)",
            "_keys_at(keys, jnp.full(B, inputs.tokens.shape[1]))",
        ),
        (
            "the first token follows the padding",
            "cache.length[:, None, None] - 1",
            "0 * cache.length[:, None, None] - 1",
        ),
        ("padding is read", "[1] * len(p) + [0] * (width - len(p))", "[1] * width"),
        ("a row that has ended goes on", "jnp.where(done, state.last, drawn)", "drawn"),
        ("the stop token is given", "ids[:end]", "ids[: end + 1]"),
    ),
}
