"""The mistakes of tests/mutants.py in lm/serve: a BOS too many or too few, a stop string that is cut by a token, an
option that is dropped on the way, a slot that is not given back."""

TESTS = {
    "lm/serve/call.py": ("tests/serve/test_routes.py",),
    "lm/serve/fields.py": ("tests/serve/test_routes.py", "tests/serve/test_generated.py"),
    "lm/serve/answers.py": ("tests/serve/test_routes.py",),
    "lm/serve/worker.py": ("tests/serve/test_server.py", "tests/serve/test_routes.py"),
    "lm/serve/app.py": ("tests/serve/test_server.py",),
    "lm/serve/text.py": ("tests/serve/test_text.py",),
    "lm/serve/conversation.py": ("tests/serve/test_conversation.py", "tests/serve/test_images.py"),
    "lm/serve/inspector.py": ("tests/serve/test_page.py",),
    "lm/serve/metrics.py": ("tests/serve/test_page.py",),
    "lm/page/chat.py": ("tests/serve/test_page.py",),
    "lm/page/chat.js": ("tests/serve/test_page.py",),  # where there is Chromium
}

BY_FILE = {
    "lm/serve/inspector.py": (
        ("heads are not zeroed", 'WhatIf(fields.strings("zero", HEADS, NAME), other)', "WhatIf((), other)"),
        ("texts are of any length", "> most:", "> 10**9:"),
        ("two at a time", 'ThreadPoolExecutor(1, "inspect")', 'ThreadPoolExecutor(2, "inspect")'),
        (
            "who has left is looked for",
            "await asyncio.wrap_future(future)",
            "await asyncio.shield(asyncio.wrap_future(future))",
        ),
        ("the queue has no end", "if len(self._open) > self.most_waiting:", "if False:"),
    ),
    "lm/serve/metrics.py": (
        (
            "an inspection's compilation is counted",
            "self._compiling.expected = True",
            "self._compiling.expected = False",
        ),
    ),
    "lm/page/chat.py": (
        ("any script runs", '"script-src": scripts,', '"script-src": scripts + " \'unsafe-inline\'",'),
        ("a frame has the page's rights", 'sandbox="allow-scripts"', 'sandbox="allow-scripts allow-same-origin"'),
    ),
    "lm/page/chat.js": (
        (
            "what is said is HTML",
            "document.createTextNode(text)",
            "...[...document.createRange().createContextualFragment(text).childNodes]",
        ),
        ("the key is not sent", "if (key) headers.Authorization", "if (0) headers.Authorization"),
        ("an answer does not fit", "most - count, served", "most, served"),
        ("a turn that failed stays", "if (!text.data && (fault", "if (0 && (fault"),
        ("Escape stops nothing", 'if (event.key === "Escape") { stop();', 'if (event.key === "Escape") {'),
    ),
    "lm/serve/embeddings.py": (
        ("padding is read", "row, 1\n", "row, 1\n        mask[:] = 1\n"),
        ("a vector is another text's", "[: BATCH_TOKENS // max(width, 1) or 1]\n", "[::-1]\n"),
        ("who has left is computed for", "if not one.vector.done()]", "]"),
        ("the queue has no end", "if len(self._waiting) + len(rows) > self.most_waiting:", "if False:"),
        ("the default prompt is left out", "special, served.model.vectors.prompt())", "special)"),
        ("a vector in base64 is float64", 'astype("<f4")', 'astype("<f8")'),
        (
            "dimensions are dropped",
            'fields.integer("dimensions", width, 1, 2**31 - 1) != width',
            'fields.integer("dimensions", width, 1, 2**31 - 1) is None',
        ),
    ),
    "lm/serve/call.py": (
        ("a prompt that has its bos gets another", "return ids[1:] if", "return ids[0:] if"),
        ("a prompt gets no bos", 'fields.flag("add_special_tokens", True)', "False"),
        (
            "a chat gets a bos besides its template's",
            "return self.encode(text, special)  #",
            "return [256, *self.encode(text, special)]  #",
        ),
        ("min_p is dropped", 'number("min_p", 0.0)', 'number("min_p", 0.0) * 0'),
        ("penalties are exchanged", 'number("presence_penalty", 0.0)', 'number("frequency_penalty", 0.0)'),
        ("the seed is dropped", "if seed is None else seed", "if seed is None else 0"),
        (
            "choices are all the first",
            "                index,\n                TOP",
            "                0,\n                TOP",
        ),
        ("ignore_eos is dropped", 'if fields.flag("ignore_eos")', 'if fields.flag("ignore_eos") and False'),
        ("a control id is stopped at by no name", "[*own, *asked, *named]", "[*own, *asked]"),
        ("processed log-probabilities are the model's own", "mode == LOG_PROBS[1]", "False"),
    ),
    "lm/serve/fields.py": (
        ("a body that is nested too deep is a failure", "(ValueError, RecursionError)", "ValueError"),
        ("half a character in a name is a failure", 'text.encode(errors="backslashreplace").decode()', "text"),
        ("an infinite number is one", "if not abs(value) <= FLOAT32:", "if value != value:"),
        (
            "what is not known is ignored",
            "        for name, value in self.left.items():",
            "        for name, value in ():",
        ),
        ("a flag is a number", "or (isinstance(value, bool) and bool not in kinds)", "or False"),
    ),
    "lm/serve/answers.py": (
        ("a stop string frees no slot", "if piece.finish_reason and not output.finish_reason:", "if False:"),
        ("a text does not continue its prompt", "call.stop, call.before(i))", "call.stop, ())"),
        (
            "the first of an echo has a log-probability",
            "TokenLogprob(ids[0], 0.0, []), None)",
            "TokenLogprob(ids[0], 0.0, []), 0.0)",
        ),
        ("alternatives have no text", "known[: self.call.logprobs]", "token.top[: self.call.logprobs]"),
    ),
    "lm/serve/text.py": (
        ("what was held back is lost", " + self.end.close()", ""),
        (
            "a stop string that ends in half a character is not found",
            "self.end.push(self.decoder.close())",
            "self.decoder.close()",
        ),
    ),
    "lm/serve/worker.py": (
        ("tokens behind a stop string are counted", "if index in self._open:", "if True:"),
        ("a client that leaves keeps its slot", "self.engine.cancel(reply.number)", "pass"),
        ("more wait than may", "if len(self._open) + len(requests) > self.capacity:", "if False:"),
        ("time does not end", "asyncio.timeout_at(self.deadline)", "asyncio.timeout_at(None)"),
    ),
    "lm/serve/app.py": (
        ("any key is one", "hmac.compare_digest(given.strip(), key)", "True"),
        ("bodies have any length", "if len(data) > limits.body_bytes:", "if False:"),
    ),
    "lm/serve/conversation.py": (
        ("a reply is forgotten", '{"role": "assistant", "content": said}]', "]"),
        ("an interruption is not heard", "while self.engine.busy and not interrupted():", "while self.engine.busy:"),
        ("a file is overwritten", 'open("x"', 'open("w"'),
    ),
}
