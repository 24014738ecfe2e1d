"""The mistakes of tests/mutations.py in published encoders, their heads and what their scores are called."""

from tests.mutations import RECORDED, of

LABELS = ("tests/pretrained/test_labels.py",)
DEFAULTS = of("pretrained/test_defaults", "a_field_means_what_its_class_says", "both_versions_say_the_same_model")
TESTS = {
    "lm/pretrained/labels.py": LABELS + ("tests/pretrained/test_scores.py",),
    "lm/pretrained/classify.py": LABELS,
    "lm/pretrained/classifiers.py": LABELS + ("tests/pretrained/test_scores.py",),
    "lm/pretrained/roberta.py": RECORDED + DEFAULTS,
    "lm/pretrained/modernbert.py": RECORDED + DEFAULTS + LABELS,
    "lm/pretrained/distilbert.py": RECORDED + LABELS,
    "lm/pretrained/passes.py": LABELS,
}
TESTS |= dict.fromkeys(("lm/text/tekken.py", "lm/text/ranks.py"), ("tests/text/test_tekken.py",))
TESTS |= {"lm/pretrained/t5.py": RECORDED + ("tests/pretrained/test_defaults.py",)}
BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lm/pretrained/labels.py": (
        ("of several labels one is said", "if self.problem == MULTIPLE else order[:1]", "if 0 else order[:1]"),
        (
            "labels at a time share their mass",
            "if self.problem == MULTIPLE:\n            return 1",
            "if 0:\n            return 1",
        ),
        ("names are in the order of the file", "by_id[id] for id in ids)", "by_id.values())"),
        ("a config without labels has one", "default_labels(count or LABELS)", "default_labels(count or 1)"),
        ("a single score is a class", "(len(self.names) > 1 or", "(len(self.names) > 0 or"),
    ),
    "lm/pretrained/classify.py": (
        ("types are not read", "types if model.config.token_types else None", "None"),
        ("a token has the label of the one before", "scores[first : first + len(tokens)]", "scores[first - 1 :]"),
    ),
    "lm/pretrained/classifiers.py": (
        ("a bare encoder's tensors are read twice", "if not own & set(row.ours)", "if 1"),
        ("every head has two classes", "output=replace(output, scores=count)", "output=output"),
    ),
    "lm/pretrained/roberta.py": (
        ("positions begin at the padding's row", "LearnedAfter(offset=pad + 1)", "LearnedAfter(offset=pad)"),
        ("the output has the layers' activation", 'replace(cfg.output, transform="gelu")', "cfg.output"),
    ),
    "lm/pretrained/modernbert.py": (
        ("a window is as wide as on both sides", "// 2 + 1  #", "+ 1  #"),
        ("gate and up are exchanged", '"layers/*/gate layers/*/up"', '"layers/*/up layers/*/gate"'),
        ("both kinds of layers turn alike", "positions=local.rotary)", "positions=full.rotary)"),
        ("the first layer has a norm", "Rewired(first.window, positions=first.positions)", "first"),
        ("classes are read at the first token", '"mean" if output.pooling == "mean" else "cls"', '"cls"'),
    ),
    "lm/pretrained/distilbert.py": (
        ("classes have a tanh", 'Classifier(transform="relu")', 'Classifier(transform="tanh")'),
    ),
    "lm/pretrained/t5.py": (
        (
            "mT5's output is scaled",
            'fields.flag("tie_word_embeddings"), False)',
            'fields.flag("tie_word_embeddings"), True)',
        ),
        ("a bare encoder reads what is before alone", "encoder_layers=0, causal=False)", "encoder_layers=0)"),
    ),
    "lm/text/tekken.py": (
        ("pieces begin at 0", "{first + rank}", "{rank}"),
        ("all pieces are used", "vocab[:count] if", "vocab[:] if"),
        ("a prompt has no bos", 'add_bos="bos" in roles', "add_bos=False"),
    ),
    "lm/text/ranks.py": (
        ("o200k's end is harmony's", '"bos": 199998, "eos": 200002', '"bos": 199998, "eos": 199999'),
        ("a reserved id of Llama 4 is left out", '"text_post_train_", 0, 6', '"text_post_train_", 0, 5'),
    ),
    "lm/pretrained/passes.py": (
        ("padding is read", "inputs).x, inputs.segments)", "inputs).x, inputs.segments * 0 + 1)"),
    ),
}
