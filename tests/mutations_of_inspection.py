"""The mistakes of tests/mutations.py in looking inside: taps, edits, views, patching."""

COURSE = ("attention", "embeddings", "figure", "output", "positions")
TESTS = {
    "lm/inspect/watching.py": ("tests/inspect/test_watching.py",),
    "lm/run/watching.py": ("tests/inspect/test_watching.py",),
    "lm/inspect/probes.py": ("tests/inspect/test_watching.py",),
    "lm/run/inside.py": ("tests/run/test_inside.py",),
    "lm/tune/samples.py": ("tests/run/test_inside.py", "tests/run/test_samples.py"),
    "lm/inspect/look.py": ("tests/inspect/test_look.py",),
    "lm/model/taps.py": ("tests/inspect/test_patching.py", "tests/inspect/test_look.py"),
    "lm/inspect/edits.py": ("tests/inspect/test_look.py", "tests/inspect/test_patching.py"),
    "lm/inspect/views.py": ("tests/inspect/test_patching.py", "tests/inspect/test_views.py"),
    "lm/inspect/patterns.py": ("tests/inspect/test_patterns.py",),
    "lm/inspect/page.py": ("tests/inspect/test_page.py", "tests/inspect/test_images.py"),
    "lm/pretrained/inside.py": ("tests/pretrained/test_inside.py", "tests/inspect/test_images.py"),
    "lm/page/inside.js": ("tests/pretrained/test_inside.py", "tests/inspect/test_images.py"),  # where there is Chromium
    "experiments/inspect/coreference.py": ("tests/experiments/test_inspect.py",),
    **{f"experiments/course/{name}.py": ("tests/experiments/test_course_pages.py",) for name in COURSE},
}

BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lm/model/taps.py": (
        ("sinks take no part of the pattern", "total + jnp.exp(sink - most)", "total"),
        ("an edit of the logits shows what is hidden", "edited if allowed is None else", "edited if 1 else"),
        ("what an edit of the pattern changes is not read", "change = (after - before)", "change = (before - before)"),
        ("a place is not edited", "    x = place.edited(x)\n    if place", "    if place"),
    ),
    "lm/inspect/edits.py": (
        ("an edit is of every layer", "mask = _among(layer, self.layers)", "mask = _among(layer, None)"),
        ("a steering vector replaces", "return x + (values", "return 0 * x + (values"),
        ("values are those of the first layer", "else values[layer]", "else values[0]"),
    ),
    "lm/inspect/patching.py": (
        ("axes are in the place's order", ".transpose([sorted(kept).index(axis) for axis in kept])", ""),
        (
            "the text's own values are patched in",
            "look(model, params, other, taps=[place])",
            "look(model, params, tokens, taps=[place])",
        ),
        ("the gradient is not times the difference", "* (values - here)", "* values"),
    ),
    "lm/inspect/summary.py": (
        ("what a mask hides is a large logit", "x <= MINUS_INFINITY / 2", "x <= -jnp.inf"),
        ("two numbers exchanged are the same bits", "words * weights", "words"),
        ("heads of fewer are not filled up", "max(0, heads - x.shape[-2])", "0 * max(0, heads - x.shape[-2])"),
        (
            "the last row and token are the first",
            "(int(i) for i in np.argwhere(one)[0])",
            "(int(i) for i in np.argwhere(one)[-1])",
        ),
    ),
    "lm/inspect/watching.py": (
        ("padding is counted", "text.segments > 0", "text.segments >= 0"),
        ("the first token looks at the first", "later = real & (place > 0)", "later = real"),
        (
            "induction is a token late",
            "jnp.diagonal(pattern, 1 - period, -2, -1)",
            "jnp.diagonal(pattern, -period, -2, -1)",
        ),
    ),
    "lm/run/watching.py": (
        ("what a killed run noted stays", "            keep_until(self.file, start)", "            pass"),
        ("probes that a killed run kept stay", "            drop_probes_after(folder, start)", "            pass"),
        ("probes are kept whenever numbers are", "        if self._probes_due(n):", "        if self.probes:"),
    ),
    "lm/inspect/probes.py": (
        ("a token is followed by itself", "jnp.arange(T - 1), tokens[1:]]", "jnp.arange(T - 1), tokens[:-1]]"),
        ("the embedding is left out", 'jnp.concatenate([taps["embedding"], taps["resid_post"]])', 'taps["resid_post"]'),
        ("all steps are the last", "[one[name] for one in series]", "[last[name] for one in series]"),
    ),
    "lm/tune/samples.py": (
        (
            "a reply is looked into without its template",
            "read = apply_chat_template(tokenizer, _as_user(prompt), True)",
            "pass",
        ),
    ),
    "lm/run/inside.py": (
        ("a page is made again", "or (folder / INSIDE_PAGE).is_file() or", "or"),
        ("the report does not know", "            write_report(folder)\n", ""),
    ),
    "lm/inspect/views.py": (
        ("induction is duplication", "[..., :-1])", "[..., 1:])"),
        ("a token is its own duplicate", "jnp.tri(T, k=-1, dtype=bool)", "jnp.tri(T, dtype=bool)"),
        ("the first query counts for the sink", "pattern[..., 1:, 0].mean(-1)", "pattern[..., 0].mean(-1)"),
        (
            "a direct effect is what is left",
            "logits - model.logits(params, x - part)",
            "model.logits(params, x - part)",
        ),
        ("a Jacobian is transposed", '"lij,lbtj->lbti"', '"lji,lbtj->lbti"'),
    ),
    "lm/inspect/patterns.py": (
        ("a sink is among the keys", "pattern.at[..., apart].set(0)", "pattern"),
        ("the high byte of a distance is lost", "distances >> 8,", "distances & 0,"),
        ("no key is left out where they do not fit", "k = max(1, k * 3 // 4)", "return packed, k"),
    ),
    "lm/inspect/page.py": (
        ("places of a last block are lost", "[:P], tuple(blocks)", "[: P // BLOCK * BLOCK], tuple(blocks)"),
        ("a token is its own neighbour", ".at[id].set(-2)", ".at[id].add(0)"),
        ("windows stay without a mask", "window=one.window if masked else 0", "window=one.window"),
        ("tokens are compared by place", "streams[:, 1][:, back]", "streams[:, 1]"),
        ("effects are not shares", "jnp.where(jnp.abs(there - here) < 1e-6, jnp.inf, there - here)", "1"),
    ),
    "lm/pretrained/inside.py": (
        ("a token's own probability is told", "np.append(ids[1:], 0)[places]", "ids[places]"),
        (
            "the lens is one layer late",
            "lens[i : i + size] for i in range(0,",
            "lens[i : i + size] for i in range(size,",
        ),
        ("an encoder predicts everywhere", "if self.config.causal:  #", "if True:  #"),
        ("heads are those of no layer", "if int(head) >= heads:", "if int(head) > heads:"),
        (
            "an output's tokens have no neighbours",
            "for at, ids in self.ids.items():\n            stem",
            "for at, ids in [*self.ids.items()][:1]:\n            stem",
        ),
    ),
    "experiments/inspect/coreference.py": (
        ("one of two is enough", "both=won.all(1)", "both=won.any(1)"),
        ("nouns stay in their places", "((other, right) if exchanged else", "((other, right) if 0 else"),
        (
            "heads look from the token after",
            "if start < span[1] and end > span[0]",
            "if start <= span[1] and end > span[0]",
        ),
    ),
    "experiments/course/positions.py": (
        ("places are compared, not pieces", "logits[1, other.index(id)]", "logits[1, i]"),
    ),
    "experiments/course/output.py": (
        ("all is new", "len(set(own))", "len(own)"),
        ("no temperature", "(np.array(texts)) / temperature", "(np.array(texts))"),
    ),
    "experiments/course/embeddings.py": (("the map is from another side", "[2][:2].T", "[2][1:3].T"),),
    "experiments/course/attention.py": (
        ("the first head is shown", "first[before.argmax()]), np", "first[before.argmin()]), np"),
    ),
    "experiments/course/figure.py": (
        ("colours have names", "lambda match: colours[match[1]]", "lambda match: match[0]"),
    ),
    "lm/page/inside.js": (
        (
            "tokens are HTML",
            "    e.append(...children);\n",
            '    children.forEach(c => c.nodeType ? e.append(c) : e.insertAdjacentHTML("beforeend", c));\n',
        ),
        ("sinks are never apart", "if (!state.apart) a.sinks.forEach", "if (1) a.sinks.forEach"),
        ("numbers are cut at the left", "Math.max(4, ...names.map(name => name.length))", "4"),
        ("up and down never scroll", 'if (step[1] && !$("layers")?', 'if (0 && !$("layers")?'),
    ),
}
