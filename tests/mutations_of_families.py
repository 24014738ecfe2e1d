"""The mistakes of tests/mutations.py in what the families of published models are made of."""

from tests.mutations import of

RECORDED = of("pretrained/test_recorded", "the_logits_are_the_recorded_ones")
FIELDS = ("tests/pretrained/test_defaults.py",)

TESTS = {
    "lm/pretrained/relatives.py": FIELDS,
    "lm/pretrained/phi3.py": FIELDS,
    "lm/pretrained/qwen_moe.py": FIELDS,
    "lm/pretrained/classifiers.py": RECORDED,
    "lm/pretrained/deepseek.py": RECORDED,
    "lm/pretrained/gemma.py": FIELDS + RECORDED,
    "lm/pretrained/hybrid.py": FIELDS + RECORDED,
    "lm/model/gated.py": ("tests/model/test_hybrids.py",),
    "lm/model/shared_kv.py": ("tests/model/test_shared_kv.py", *RECORDED),
    "lm/model/per_layer.py": ("tests/model/test_shared_kv.py", *RECORDED),
    "lm/pretrained/gemma4.py": FIELDS
    + RECORDED
    + of("pretrained/test_recorded", "saved_and_loaded_again_it_is_the_same"),
    "lm/model/normed_experts.py": ("tests/model/test_normed_experts.py",),
    "lm/model/hybrids.py": ("tests/model/test_normed_experts.py", "tests/model/test_shared_kv.py"),
    "lm/pretrained/peft_experts.py": ("tests/pretrained/test_peft.py",),
    "lm/pretrained/rows.py": RECORDED,
    "lm/pretrained/published.py": ("tests/pretrained/test_save.py",),
    "lm/pretrained/sentences.py": ("tests/pretrained/test_sentences.py", "tests/pretrained/test_save.py"),
    "lm/pretrained/arrays.py": ("tests/pretrained/test_sentences.py",),
    "lm/pretrained/t5gemma.py": RECORDED,
    "lm/model/merged.py": ("tests/model/test_merged.py",),
    "lm/pretrained/stacked.py": ("tests/pretrained/test_stacked.py",),
    "lm/pretrained/known.py": ("tests/pretrained/test_hub_configs.py",),
    "lm/pretrained/gguf.py": ("tests/pretrained/test_gguf_save.py", "tests/pretrained/test_gguf.py"),
    "lm/pretrained/gguf_tables.py": ("tests/pretrained/test_gguf_save.py", "tests/pretrained/test_gguf.py"),
}

BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lm/pretrained/relatives.py": (
        ("windows where positions are", "lambda i: not used or turned[i]", "lambda i: not used or not turned[i]"),
        ("the fourth layer is turned too", "(i + 1) % interval != 0", "i % interval != 0"),
        ("logits are multiplied", "Output(scale=1 / by", "Output(scale=by"),
        ("windowed layers of OLMo 3 are scaled", "positions=local.rotary)", "positions=full.rotary)"),
    ),
    "lm/pretrained/phi3.py": (
        ("the original context is the whole", 'fields.integer("original_max_position_embeddings")', "4096"),
    ),
    "lm/pretrained/qwen_moe.py": (
        ("steps are counted from 0", "(i + 1) % step != 0", "i % step != 0"),
        ("a window that is not used is", "window, dense = size if used else 0,", "window, dense = size,"),
    ),
    "lm/model/shared_experts.py": (
        ("padding is a load", "sum(2), is_token)", "sum(2), None)"),
        ("the bias weighs", "jnp.take_along_axis(scores, expert", "jnp.take_along_axis(scores + bias, expert"),
        ("groups are worth their first", "jax.lax.top_k(grouped, self.group_best)[0].sum(-1)", "grouped[..., 0]"),
        ("outputs are not scaled", "weights * self.scale, expert", "weights, expert"),
        ("the shared one has no gate", "if not self.shared_gate:", "if True:"),
    ),
    "lm/pretrained/hybrid.py": (
        ("the first layer is full", "(i + 1) % every == 0", "i % every == 0"),
        ("whole heads are turned", "FRACTION = 0.25", "FRACTION = 1.0"),
        ("norms are of w", "norm = RMSNorm(eps, plus_one=True)", "norm = RMSNorm(eps)"),
        ("projections are not of key heads", "_fused(state.key_heads)", "_fused(1)"),
    ),
    "lm/model/shared_kv.py": (
        ("values are not normalised", 'self.value_norm(module, "value_norm", v[0] if v else k)', "v[0] if v else k"),
        (
            "places of a ring are in order",
            "scoring if kept.positions is None else scoring.at(",
            "scoring or scoring.at(",
        ),
        ("queries are of size 1", "* (self.scale or self.head_dim**-0.5)", ""),
    ),
    "lm/model/per_layer.py": (
        ("the table is small", "* P**0.5", ""),
        ("both parts are added", "(projected + own) * 2**-0.5", "(projected + own)"),
        ("the stem is free", "2.0 * width * layers * self.size", "0.0"),
    ),
    "lm/pretrained/gemma4.py": (
        ("the first of its type is read", "return found[-1]", "return found[0]"),
        ("the last layer is as it says", "return [*types[:-1], FULL]", "return list(types)"),
        ("an export has no experts", "**_written_experts(cfg.ffn),", "**{},"),
        (
            "twice as wide is as wide",
            "_dense_width(shared[0].ffn) == 2 * width",
            "_dense_width(shared[0].ffn) == width",
        ),
        ("values are never keys", 'keys_are_values=fields.flag("attention_k_eq_v")', "keys_are_values=False"),
    ),
    "lm/model/normed_experts.py": (
        ("the router reads what experts read", '"router_norm", x', '"experts_norm", x'),
        ("the router's size is forgotten", " * self.router_scale, is_token)", ", is_token)"),
        ("the experts' branch is added as it is", 'self.norm(module, "experts_post_norm", routed)', "routed"),
        ("an expert's own number is forgotten", ", ones)[expert], expert", ", ones)[expert] ** 0, expert"),
    ),
    "lm/model/hybrids.py": (
        ("the last layer is of its place", "layers if layers % every else every", "every"),
        (
            "layers of their own keep their feed-forwards",
            "beside(one.ffn)) if one.ffn else",
            "beside(one.ffn)) if 0 else",
        ),
    ),
    "lm/pretrained/peft_experts.py": (
        ("a stack that is turned is turned again", "conversion, StackedLinear) else", "conversion, str) else"),
    ),
    "lm/pretrained/rows.py": (
        ("up is gate", "np.split(tensor, ends, axis=-1)", "np.split(tensor, ends, axis=-1)[::-1]"),
    ),
    "lm/pretrained/published.py": (
        ("modules stay behind", " | sentences.module_files(folder)", ""),
        ("processors stay behind", " | processors", ""),
    ),
    "lm/pretrained/sentences.py": (
        ("a module may be anywhere", "if not path.resolve().is_relative_to(folder.resolve()):", "if False:"),
        ("padding is summed", "(x * mask).sum(1) / mask.sum(1)", "x.sum(1) / mask.sum(1)"),
        ("the last token is the first", ".astype(jnp.int32) - 1", ".astype(jnp.int32) * 0"),
        ("vectors keep their length", "return x / jnp.maximum(jnp.sqrt(", "return x * jnp.maximum(0 * jnp.sqrt("),
        ("the tokenizer's length is not read", "return most or _tokenizers_length(", "return most or 0 * len("),
        ("no prompt is the default", "self.default if name is None else name", "name or ''"),
    ),
    "lm/pretrained/t5gemma.py": (
        ("a window is of the token too", "(window + 1, window)", "(window, window - 1)"),
        ("all of a window is on each side", "((window + 1) // 2, window // 2)", "(window, window - 1)"),
        ("the encoder is causal", "replace(both, causal=False, output=", "replace(both, causal=True, output="),
    ),
    "lm/model/merged.py": (
        ("the encoder's logits have no cap", "Scoring(seen.mask, softcap=self.softcap)", "Scoring(seen.mask)"),
        ("what is read of the encoder is not kept", "replace(cache, cross_k=made[0], cross_v=made[1])", "cache"),
        ("the encoder's keys have no norm", 'self.qk_norm(module, "key_norm", k)', "k"),
        ("an edit of the encoder's logits is lost", "edited = tap(", "edited = logits if prefix else tap("),
    ),
    "lm/pretrained/arrays.py": (("a text's end is cut off", "most - added], *ids[len(ids) - added :]]", "most]]"),),
    "lm/pretrained/stacked.py": (("gate is up", "slice(0, half)", "slice(half, None)"),),
    "lm/model/gated.py": (
        ("the gate is open", "y * jax.nn.sigmoid(gate.astype(jnp.float32))", "y * jnp.ones_like(y)"),
        (
            "the gate is not counted",
            'super().products(width)\n        return {**plain, "query": 2 *',
            'super().products(width)\n        return {**plain, "query": 1 *',
        ),
    ),
    "lm/train/optim.py": (("the load is followed", "-BALANCE_RATE * jnp.sign(g)", "BALANCE_RATE * jnp.sign(g)"),),
    "lm/pretrained/deepseek.py": (
        ("all layers have experts", "dense if i < first and", "dense if 0 and"),
        ("V2's groups are worth two", "_groups(fields, best=1)", "_groups(fields, best=2)"),
    ),
    "lm/pretrained/gemma.py": (
        ("a window is on one side", "window // 2 + 1", "window"),
        ("both directions are one", "causal=not both)", "causal=True)"),
    ),
    "lm/pretrained/known.py": (
        ("a family of another number is near", 're.sub(r"\\D", "", a) != re.sub(r"\\D", "", b) or', "False or"),
        ("a longer name is near", "a != b and (a.startswith(b) or b.startswith(a))", "False"),
    ),
    "lm/pretrained/mxfp4.py": (
        ("the upper half is first", "[packed[part] & 15, packed[part] >> 4]", "[packed[part] >> 4, packed[part] & 15]"),
        ("scales are of another bias", "BIAS, NAN = 127,", "BIAS, NAN = 128,"),
        ("outputs are inputs", "out.swapaxes(-1, -2)", "out.reshape(self.shape(name))"),
    ),
    "lm/pretrained/gguf.py": (
        ("factors are float64 of float32", "[float(str(value)) for", "[float(value) for"),
        ("no window is one of none", '!= ("attention.sliding_window", 0)', '!= ("", 0)'),
    ),
    "lm/pretrained/gguf_tables.py": (
        ("files with experts are Llama's", "if kind.experts == experts)", "if not kind.experts)"),
        ("gpt-oss's second norm is called otherwise", 'ffn_norm="post_attention_norm"', 'ffn_norm="ffn_norm"'),
    ),
    "lm/pretrained/gguf_save.py": (
        ("keys that llama.cpp passes over are written", "if key not in kind.passed_over}", "}"),
    ),
    "lm/inspect/views.py": (("branches are of size 1", "out * model.cfg.wiring.branch_scale", "out"),),
}
