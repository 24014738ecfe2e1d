"""The mistakes of tests/mutations.py in images: how they are read, where they stand, who sees them."""

SEEING, VISION = ("tests/pretrained/test_images.py",), ("tests/model/test_vision.py",)
CAPTIONS = ("tests/data/test_captions.py",)
DECODING, CHATS = ("tests/decode/test_images.py",), ("tests/serve/test_images.py",)
TESTS = {
    "lm/model/vision.py": VISION + SEEING,
    "lm/data/images.py": ("tests/data/test_images.py",),
    "lm/data/captions.py": CAPTIONS,
    "lm/data/shapes.py": CAPTIONS,
    "lm/text/image_tokens.py": SEEING + CAPTIONS + CHATS,
    "lm/pretrained/siglip.py": SEEING + ("tests/tune/test_vision.py",),
    "lm/decode/images.py": DECODING + SEEING,
    "lm/serve/images.py": CHATS,
    "lm/data/image_records.py": ("tests/data/test_image_records.py",),
    "lm/data/digits.py": ("tests/data/test_digits.py",),
}
BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lm/model/vision.py": (
        ("two images with text between are one block", "jnp.cumsum(begins, 1), 0)", "1, 0)"),
        ("soft tokens stand one place late", "jnp.cumsum(marks, 1) - 1", "jnp.cumsum(marks, 1)"),
        ("patches are laid out by columns", "transpose(0, 1, 3, 2, 4, 5)", "transpose(0, 3, 1, 2, 4, 5)"),
        ("the tower's final norm is left out", "x = vision.tower.wiring.final(self, vision.tower.norm, x)", "pass"),
        ("patches see only earlier ones", "Shared(Mask(causal=False)", "Shared(Mask()"),
    ),
    "lm/data/images.py": (
        (
            "what is transparent lies on black",
            'Image.new("RGBA", image.size, "white")',
            'Image.new("RGBA", image.size)',
        ),
        ("a camera's orientation is not applied", "ImageOps.exif_transpose(found, in_place=True)", "pass"),
        ("16 bits are cut to 8", "levels // 257", "levels"),
        ("a URL is a file that is not there", 're.match("https?:|data:", what)', "False"),
        ("there is no limit", "found.width * found.height > MOST_PIXELS", "False"),
    ),
    "lm/data/captions.py": (
        ("the question carries loss", "np.arange(len(ids)) >= len(before)", "np.arange(len(ids)) >= 0"),
        (
            "a row has the images of its first document",
            "dict.fromkeys(inside[inside >= 0]",
            "dict.fromkeys(inside[:1]",
        ),
        ("held-out images are in training's order", "np.array([number]), seed)", "np.array([number]), 0)"),
    ),
    "lm/data/shapes.py": (
        ("equal images are on both sides", 'json.dumps(json.loads(record)["image"])', "record + str(id(record))"),
        ("another's image is the own one", "every[(index + 1) % len(every)]", "every[index]"),
    ),
    "lm/text/image_tokens.py": (
        ("an image has no end", "*[self.image] * self.count, self.end)", "*[self.image] * self.count)"),
        ("marks of others than the images are taken", ":= len(parts) - 1) != images", ":= len(parts) - 1) < 0"),
        ("a template gets parts that it does not know", "if not KNOWS_IMAGES", "if False and KNOWS_IMAGES"),
        ("a rendered chat has two bos", "[*missing_bos(tokenizer, ids), *ids]", "[256, *ids]"),
        ("the prompt's line is not ended", 'text.replace(MARK, "") + "\\n"', 'text.replace(MARK, "")'),
    ),
    "lm/pretrained/siglip.py": (
        ("older names are not known", '    (TOWER, "vision_tower."),\n', ""),
        ("an adapter has the files' names", "if name.startswith(file)), name)", "if 0), name)"),
        (
            "an adapter of before transformers 5 is refused",
            '"model.vision_tower.vision_model.", TOWER',
            '"model.vision_tower.vision_model.", TEXT',
        ),
        ("a text's tensors are not inside", "r._replace(theirs=TEXT + r.theirs)", "r"),
    ),
    "lm/decode/images.py": (
        ("an image without a place is taken", "or exact and places != soft", ""),
        ("a part has all images up to its end", "images[None, before:seen]", "images[None, :seen]"),
        ("a text is read with the images before it", "if seen > before else None", "if seen else None"),
        ("a prefix is read in one direction", "if vision.prefix:", "if False:"),
    ),
    "lm/data/image_records.py": (
        ("a struct without bytes has no path", 'image.get("bytes") is None', "False"),
        ("a text of TFDS is an image", "return value.decode()", 'return {"bytes": _base64(value)}'),
        ("images of TFDS are arrays", 'return type("Stored"', 'return None and type("Stored"'),
        (
            "only the records are in the fingerprint",
            "return content([Path(folder)",
            "return [] and content([Path(folder)",
        ),
        ("files are listed anew each time", "if not is_complete(folder):", "if True:"),
    ),
    "lm/serve/images.py": (
        ("an address is fetched", 'scheme.lower() != "data" or not comma', "not comma"),
        ("a detail is ignored", 'if detail != "auto":', "if False:"),
    ),
}
