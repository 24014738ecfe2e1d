"""The mistakes of tests/mutants.py in what has to do with data and text."""

CONVERSATIONS = ("tests/data/test_conversations.py",)
TESTS = {
    **dict.fromkeys(("lm/data/conversations.py", "lm/data/examples.py"), CONVERSATIONS),
    **{f"lm/data/{name}.py": (f"tests/data/test_{name}.py", *CONVERSATIONS) for name in ("objective", "store")},
    "lm/data/preferences.py": (
        "tests/data/test_preferences.py",
        "tests/tune/test_reward.py::test_packed_is_alone_and_read_at_the_eos",
    ),
    "lm/data/pack.py": ("tests/data/test_pack.py", *CONVERSATIONS, "tests/data/test_preferences.py"),
    "lm/text/chat.py": ("tests/text/test_chat.py", *CONVERSATIONS),
    "lm/data/mixture.py": (
        "tests/data/test_mixture.py",
        "tests/data/test_source.py::test_an_experiment_s_file_names_every_source_without_the_page_that_declares_it",
    ),
    "lm/data/encoded.py": ("tests/data/test_store.py", "tests/tune/test_pretrain.py"),
    "lm/text/train.py": ("tests/text/test_tokenizer.py",),
    "lm/text/published.py": ("tests/text/test_added.py",),
    "lm/text/files.py": ("tests/text/test_added.py", "tests/text/test_published.py"),
    "lm/text/export.py": ("tests/text/test_published.py", "tests/text/test_added.py"),
    "lm/text/sandbox.py": ("tests/text/test_chat.py",),
}

BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lm/data/remote.py": (
        ("what has gone there stays here", "if name not in listing.files:", "if False:"),
        ("what has changed there is not fetched", "_time(before.get(name)) != version]", "name not in before]"),
        (
            "the time of a file is that of its fetching",
            "os.utime(part, ns=(listing.files[name][1],) * 2)",
            "os.utime(part)",
        ),
        ("one pattern's files are another's", 'f"{url}\\n{pattern}"', 'f"{url}"'),
        ("what was fetched is not read without a network", "if not known.is_file():", "if True:"),
    ),
    "lm/data/mixture.py": (
        ("counts do not depend on the seed", '(self._seed, "mixture"', '(0, "mixture"'),
        ("the order within a batch does not depend on the seed", '(self._seed, "batch"', '(0, "batch"'),
        ("every batch has one order", '"batch", step', '"batch", 0'),
        ("rows before a step include its own", "[:rest].sum", "[: rest + 1].sum"),
        ("a source is known to its page alone", "    repeats,\n", ""),
    ),
    "lm/data/conversations.py": (
        ("an end of turn that is the pad has no loss", "*loss], bool)", "*loss], bool) & (array != tokenizer.pad)"),
        ("a completion has no eos", "== [tokenizer.eos] else [tokenizer.eos]", "== [tokenizer.eos] else []"),
        ("a token over the border has no loss", "stop > len(prompt) for _, _, stop", "a >= len(prompt) for _, a, _"),
        ("unknown fields are left unread", "if name not in (*kind, *besides)]:", "if False]:"),
        ("any role will do", 'if message["role"] not in ROLES:', "if False:"),
        ("another template has the same store", "json.dumps([tokenizer.chat_template,", "json.dumps(["),
        ("there may be two bos", "begin = missing_bos(tokenizer, ids)", "begin = [x for x in [tokenizer.bos] if x]"),
    ),
    "lm/data/preferences.py": (
        ("the last token of a row has no reward", "return context.seq_len - 1", "return context.seq_len"),
        ("equal sides are kept", 'one" if equal else "")', 'one" if False else "")'),
        ("a prompt ends inside a word", "while at and not chosen", "while False and not chosen"),
        ("an id depends on the place in a row", "rows.documents[own] - 2 * k,", "rows.documents[own],"),
        ("rejected sides are among the chosen ones", 'mask * (batch["segment_ids"] % 2)', "mask * 1"),
        ("a completion is paired with its own prompt", "before = one\n", "before = before\n"),
        ("all sides are good", 'record["side"] == 0  #', 'record["side"] >= 0  #'),
    ),
    "lm/data/examples.py": (
        ("a first token is learned", "loss & (np.arange(len(ids)) > 0)", "loss"),
        ("examples show what is in a row", "own = documents == number", "own = documents > 0"),
    ),
    "lm/data/talks.py": (
        ("what is private is talked of", 'not node.name.startswith("_")', "node.name"),
        ("a talk of the train split is held out", "SPLITS[not is_train(split)]", "SPLITS[0]"),
    ),
    "lm/data/encoded.py": (
        ("bytes are counted as characters", "None, len(text.encode()), first)", "None, len(text), first)"),
        ("a begin token is not seen", "if tokenizer.bos is None else 0", "if True else 0"),
        ("documents have no eos", "(tokenizer.bos, tokenizer.eos))", "(tokenizer.bos, None))"),
    ),
    "lm/data/pack.py": (
        ("conversations leak", "documents[i, at : at + length] = number", "documents[i, at : at + length] = 1"),
        ("a long conversation is cut anywhere", "(carries[1 : width + 1] == 0)", "(carries[:width] > 0)"),
        ("what is left out is not told", "if not cut + dropped:", "if True:"),
        ("windows do not overlap", "[:, None] * (width - 1)", "[:, None] * width"),
        ("pieces of a long document do not overlap", "+ nth * seq_len, lengths,", "+ nth * (seq_len + 1), lengths,"),
        ("a document that fits exactly opens a row", "bisect_left(free, length)", "bisect_left(free, length + 1)"),
        ("every epoch has one order", "self._name, purpose, epoch)", "self._name, purpose)"),
        ("the order of rows does not depend on the seed", "(seed, self._name, purpose", "(0, self._name, purpose"),
        ("sides of a pair leak", "number += 1\n", "number += 0\n"),
        ("a pair is cut", "np.where(store.lengths > seq_len + 1, 0, store.lengths)", "store.lengths"),
    ),
    "lm/data/objective.py": (
        ("a user's turn has loss", "* (rows.loss[:, 1:] > 0)}", "* 1}"),
        ("the mask is not shifted", "(rows.loss[:, 1:] > 0)}", "(rows.loss[:, :-1] > 0)}"),
        ("targets are not shifted", '"targets": rows.tokens[:, 1:]', '"targets": rows.tokens[:, :-1]'),
        ("padding is predicted", "(current > 0) & (current == next_)", "(current == next_)"),
        ("the next document is predicted", "(current > 0) & (current == next_)", "(current > 0) & (next_ > 0)"),
        ("the first token after a prefix is not predicted", ">= lengths - 1)", ">= lengths)"),
        ("positions restart one token late", "index[:, 1:], 0)", "index[:, :-1], 0)"),
    ),
    "lm/data/masked.py": (
        ("control tokens are masked", " & ~context.special[tokens]", ""),
        ("the shares of masked and random tokens are exchanged", "= 0.8, 0.1", "= 0.1, 0.8"),
    ),
    "lm/data/denoise.py": (
        ("sentinels count upwards", "sentinel + 1 - np.cumsum", "sentinel - 1 + np.cumsum"),
        ("the decoder reads its target", "START)[:, :-1]", "START)[:, 1:]"),
        ("the first sentinel is not predicted", ">= inputs - 1)", ">= inputs)"),
    ),
    "lm/data/pairs.py": (
        ("the second text begins one late", "text.part(cut, cut + length)", "text.part(cut + 1, cut + 1 + length)"),
    ),
    "lm/data/loader.py": (
        ("a row's random choices depend on its place in the batch", "int(numbers[row])", "row"),
        ("those of held-out rows depend on the batch size", "source, start + row)", "source, row)"),
        (
            "the last held-out batch is left out",
            "(first * size, plan.rows_per_epoch, size)",
            "(first * size, plan.rows_per_epoch - size + 1, size)",
        ),
        ("a resumed run reads from the start", "itertools.count(start)", "itertools.count()"),
    ),
    "lm/data/store.py": (
        ("records without loss are kept", "one.loss is not None and not one.loss[1:].any() else", "False else"),
        ("a text among conversations has no loss", "np.ones(len(one.ids), bool)", "np.zeros(len(one.ids), bool)"),
        ("a first token without one is coded", "self.first_bytes += one", "self.first_bytes = 0 * one"),
        ("no document is a duplicate", "len(self) - len(np.unique(self.hashes))", "0"),
    ),
    "lm/data/source.py": (
        (
            "documents are split by their number",
            "[text_hash(text) for text in",
            "[text_hash(str(len(text))) for text in",
        ),
        ("hidden files are read", "if hidden or not self._is_hidden(name)", "if True"),
        (
            "a run of before has today's fingerprint",
            "*self.source._identity(hidden=True))",
            "*self.source._identity())",
        ),
        (
            "a run of before has today's files",
            "source._named(source.path, hidden=True)\n",
            "source._named(source.path)\n",
        ),
    ),
    "lm/data/records.py": (
        (
            "a lone surrogate is text",
            '{wanted}")\n        return text_of(record, self.field, where)',
            '{wanted}")\n        return record[self.field]',
        ),
        ("the number of a line is that of the one before", '.count(b"\\n") + 1', '.count(b"\\n")'),
    ),
    "lm/data/paths.py": (
        ("what is left out is not told", "if others else", "if not others else"),
        ("pictures are text", 'b"\\0" not in opened.read(1024)', "True"),
        ("the rarest suffix is read", "counts.most_common(1)[0][0]", "counts.most_common()[-1][0]"),
        ("records are read as text", "RECORDS.get(suffix)", 'RECORDS.get(f"{suffix}x")'),
    ),
    "lm/run/folder.py": (
        ("a run goes on in the page's order", "[*recorded, *sources].index", "list(sources).index"),
        ("a run of before gets today's split", "return earlier if earlier", "return source if earlier"),
        ("other sources begin alike", "own.get(name, 0) == theirs.get(name)", "True"),
    ),
    "lm/study/comparable.py": (
        ("across tokenizers it is the loss", '"bits_per_byte" if TOKENIZER in differ', '"loss" if TOKENIZER in differ'),
        ("any evaluation has one objective", "(evaluation.objective or evaluation.method)", "True"),
        ("own documents are other texts", "if not (evaluation and evaluation.sources):", "if True:"),
    ),
    "lm/text/train.py": (
        ("what is reserved is left out", "block.replace(RESERVED, stand_in)", "block"),
        ("the stand-in stays", "piece.piece.replace(stand_in, RESERVED)", "piece.piece"),
    ),
    "lm/text/published.py": (
        ("added tokens are none", "for name, id in self.added_ids.items()}", "for name, id in ()}"),
    ),
    "lm/text/files.py": (
        (
            "a template of transformers 4's file is not read",
            'fields.get("chat_template") or older',
            'fields.get("chat_template")',
        ),
        ("special tokens without an id have none", "for token in config.special():", "for token in ():"),
    ),
    "lm/text/export.py": (
        ("gaps are closed", "range(backend.get_vocab_size(), max(new, default=-1) + 1)", "sorted(new)"),
        ("ids of ranks that nothing has are closed", "(named | unused).items()", "named.items()"),
    ),
    "lm/text/chat.py": (
        ("markers are always the same", "if character not in text", "if True"),
        ("a template without marks has no mask", "parts.append((len(before), len(after)))", "parts.append((0, 0))"),
        ("the messages before a completion have loss", '"assistant" or i < given:', '"assistant":'),
    ),
    "lm/text/sandbox.py": (
        ("output is not bounded", "length += len(part)", "length = len(part)"),
        ("a number is a size", 'hasattr(function, "jinja_pass_arg")', "False"),
    ),
}
