"""The mistakes of tests/mutations.py in multi-token prediction: what modules read and predict, how they draft."""

TESTS: dict[str, tuple[str, ...]] = {
    "lm/model/multi_token.py": ("tests/model/test_multi_token.py", "tests/decode/test_self_draft.py")
}
BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lm/model/multi_token.py": (
        ("a document begins with another's state", "jnp.where(_shifted(segments, mask.zigzag) == own, own, 0)", "own"),
        (
            "every module begins as early as the first",
            "_shifted(segments, mask.zigzag) == own",
            "_shifted(own, mask.zigzag) == own",
        ),
        (
            "the state is of the same place",
            "before = _shifted(final_state(cfg, head, x), mask.zigzag)",
            "before = final_state(cfg, head, x)",
        ),
        ("the state is not normalised", "_shifted(final_state(cfg, head, x), mask.zigzag)", "_shifted(x, mask.zigzag)"),
        (
            "every module reads by the model's norm",
            '        head = module["head"]\n',
            '        own_head = module["head"]\n',
        ),
        (
            "modules read a prefix in both directions",
            "key_segments=segments, query_blocks=None, key_blocks=None)",
            "key_segments=segments)",
        ),
        (
            "modules read across documents",
            "query_segments=segments, key_segments=segments,",
            "query_segments=None, key_segments=None,",
        ),
        ("the layer is of the first kind", "pattern=(cfg.pattern[last],)", "pattern=cfg.pattern[:1]"),
    ),
    "lm/decode/self_draft.py": (
        (
            "the next module's state is of the draft",
            "kept.append(before[rows, accepted])",
            "kept.append(before[rows, last])",
        ),
        (
            "the prompt leaves the next module another state",
            "jnp.maximum(length - k, 0)",
            "jnp.maximum(length - k - 1, 0)",
        ),
        (
            "a cache keeps what was rejected",
            "caches.append(replace(cache, length=text.length - k))",
            "caches.append(cache)",
        ),
        ("drafted tokens are not read", ".at[rows, last].set(drafted.tokens[-1])", ""),
    ),
    "lm/pretrained/fp8.py": (
        ("a row's last block is as long as the others", "[: numbers.shape[1]]", "[-numbers.shape[1] :]"),
        ("blocks lie across", "rows, columns = block", "columns, rows = block"),
        (
            "scales are tensors of the model",
            "name.removesuffix(SCALE) not in self.packed or name in self.packed",
            "name",
        ),
        ("a scale is no number", "not np.isfinite(scales).all()", "False"),
        ("numbers without a word of scales are taken", "if source.kind(name) == KIND:", "if False:"),
    ),
}
