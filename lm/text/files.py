"""Reading published tokenizers: any of their file formats, or a directory in Hugging Face's layout.

Of a directory's files tokenizer.json comes first, then SentencePiece, tiktoken's ranks, GPT-2's pair of files and
vocab.txt. tokenizer_config.json, special_tokens_map.json, chat_template.jinja and the like beside them are respected.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import ByteLevel

from lm.text import ranks, sentence
from lm.text.export import byte_alphabet
from lm.text.gaps import has_other_ids, without_gaps
from lm.text.gguf import from_gguf
from lm.text.headers import read_gguf_header
from lm.text.protocol import ROLES, TEMPLATE_FILE, Tokenizer
from lm.text.published import TokenizerConfig, build, byte_level_bpe, read_json, wordpiece
from lm.text.tekken import from_tekken
from lm.text.token_fields import checked_fields, checked_ids, checked_stops

OLDER_TEMPLATE = "chat_template.json"  # of a model with vision, as transformers 4 wrote it
CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", OLDER_TEMPLATE, TEMPLATE_FILE)
TEMPLATE_FOLDER = "additional_chat_templates"  # NAME.jinja each
IDS = ("generation_config.json", "config.json")
MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.model")
VOCABS, MERGES = ("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")
TEKKEN = "tekken.json"
TOKENIZER_FILES = ("tokenizer.json", *MODELS, "ranks.tiktoken", *VOCABS, "vocab.txt", TEKKEN)
FORMATS = "tokenizer.json, SentencePiece's .model, tiktoken's ranks, vocab.json with merges.txt, vocab.txt"
FORMATS += ", tekken.json, .gguf"


def from_directory(folder: Path) -> Tokenizer | None:
    """The tokenizer of a directory, or None where it has none of TOKENIZER_FILES and no .tiktoken. Raises ValueError as
    `from_file`, and for several of the last."""
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            return from_file(folder / name)
    ranked = sorted(folder.glob("*.tiktoken"))
    if len(ranked) > 1:
        raise ValueError(f"{folder} has {ranked[0].name} and {ranked[1].name}: leave the one of its tokenizer")
    return from_file(ranked[0]) if ranked else None


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files of a directory that are of its tokenizer, in every form, read here or not, by name."""
    names = *TOKENIZER_FILES, *MERGES, *CONFIG_FILES
    more = [*folder.glob("*.tiktoken"), *folder.glob("*.model")] if folder.is_dir() else []
    found = [folder / name for name in names] + sorted(more)
    return {file.name: file for file in found if file.is_file()}


def from_file(path: Path) -> Tokenizer:
    """The tokenizer in a file of any format. Raises ValueError, with its name, where it is of none or damaged."""
    data = path.read_bytes() if path.suffix != ".gguf" else b""
    try:
        return _reader(path, data)(path, data, tokenizer_config(path.parent))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path.parent) in text else f"{path}: {text}") from None


def _reader(path: Path, data: bytes) -> Callable[[Path, bytes, TokenizerConfig], Tokenizer]:
    if path.name in (*VOCABS, *MERGES):
        return _gpt2
    if path.name == TEKKEN:
        return _tekken
    if path.suffix == ".gguf":
        return _gguf
    if path.suffix == ".json":
        return _tokenizer_json
    if path.suffix == ".txt":
        return _wordpiece
    first = data.split(b"\n", 1)[0].split()
    looks_ranked = len(first) == 2 and first[1].isdigit()
    return _ranks if looks_ranked or path.suffix == ".tiktoken" else _sentence


# ---------------------------------------------------------------- configuration


def tokenizer_config(folder: Path) -> TokenizerConfig:
    """What the files of a model directory specify about control ids. Raises ValueError where one is damaged."""
    present = _present(folder, (*CONFIG_FILES[:4], *IDS))
    contents = {name: read_json(str(folder / name), data) for name, data in present.items()}
    for name, content in contents.items():
        if not isinstance(content, dict):
            raise ValueError(f"{folder / name} is damaged: expected an object")
    fields: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        fields |= checked_fields(str(folder / name), contents.get(name, {}))
    generation = contents.get("generation_config.json", {})
    ids = {**contents.get("config.json", {}), **generation}
    roles = {r: ids[f"{r}_token_id"] for r in ROLES if isinstance(ids.get(f"{r}_token_id"), int)}
    stops = checked_stops(str(folder / IDS[0]), generation.get("eos_token_id"))
    older = checked_fields(str(folder / OLDER_TEMPLATE), contents.get(OLDER_TEMPLATE, {})).get("chat_template")
    template = _templates(folder, fields.get("chat_template") or older)
    added = checked_ids(str(folder / CONFIG_FILES[2]), contents.get("added_tokens.json", {}))
    return TokenizerConfig(fields, roles, stops, template, added)


def _templates(folder: Path, value: Any) -> str | dict[str, str] | None:
    """The chat template of a folder, or its templates by name: those of its .jinja files over the `value` of its JSON
    files."""
    said = {entry["name"]: entry["template"] for entry in value} if isinstance(value, list) else value
    files = {Path(name).stem: data.decode() for name, data in _named_templates(folder).items()}
    if (jinja := folder / TEMPLATE_FILE).is_file():
        files["default"] = jinja.read_text(encoding="utf-8")
    if not files:
        return said
    named = {**({"default": said} if isinstance(said, str) else said or {}), **files}
    return named["default"] if set(named) == {"default"} else named


def _named_templates(folder: Path) -> dict[str, bytes]:
    files = sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    return {f"{TEMPLATE_FOLDER}/{file.name}": file.read_bytes() for file in files}


def _present(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _files_to_save(path: Path, *more: str) -> dict[str, bytes]:
    """`path`, `more` beside it, its CONFIG_FILES and named templates. generation_config.json belongs to the model."""
    beside = _present(path.parent, (*more, *CONFIG_FILES)) | _named_templates(path.parent)
    return {path.name: path.read_bytes(), **beside}


# ---------------------------------------------------------------- formats


def _tokenizer_json(path: Path, data: bytes, config: TokenizerConfig) -> Tokenizer:
    try:
        backend = Backend.from_str(data.decode())
    except Exception as error:  # the library raises nothing more particular
        raise ValueError(f"{path} is no tokenizer.json, or damaged: {error}") from None
    files = _files_to_save(path)
    if has_other_ids(data.decode(), backend):
        whole = without_gaps(data.decode(), path)
        backend, files[path.name] = Backend.from_str(whole), whole.encode()
    return build(backend, replace(config, added_ids={}), files)  # it has all of them itself


def _sentence(path: Path, data: bytes, config: TokenizerConfig) -> Tokenizer:
    try:
        pieces = sentence.SentencePiece(data)
    except RuntimeError:
        raise ValueError(
            f"{path} is not a SentencePiece model: expected the .model file that its trainer writes"
        ) from None
    if path.name == "sentencepiece.model" or not _present(path.parent, CONFIG_FILES):
        return pieces
    added = _controls_beside(pieces, config)
    names = {name: id for id, name in {**pieces.controls, **added}.items()}
    roles = {role: names[name] for role in ROLES if (name := config.token_name(role)) in names}
    options = sentence.SentencePieceOptions(
        added,
        roles,
        config.fields.get("add_bos_token"),
        config.fields.get("add_eos_token"),
        config.fields.get("legacy") is not False,
    )
    return _with_config(sentence.SentencePiece(data, options, _files_to_save(path)), config)


def _controls_beside(pieces: sentence.SentencePiece, config: TokenizerConfig) -> dict[int, str]:
    """The control ids beside those of a model -> names: the files', then special tokens without an id, which is that of
    their piece, or else the next one, as in transformers."""
    added = {id: token.content for id, token in config.added().items() if token.special or id >= pieces.vocab_size}
    if (count := config.fields.get("extra_ids")) and not added:  # T5's sentinels, in descending order
        added = {pieces.vocab_size + i: f"<extra_id_{count - 1 - i}>" for i in range(count)}
    ids = {name: id for id, name in added.items()}
    for token in config.special():
        if token.content not in ids:
            own = pieces.id_of(token.content)
            ids[token.content] = max([pieces.vocab_size - 1, *ids.values()]) + 1 if own is None else own
    return {id: name for name, id in ids.items() if id != pieces.unk}


def _ranks(path: Path, data: bytes, config: TokenizerConfig) -> Tokenizer:
    if path.name == "ranks.tiktoken" and (about := path.with_name("ranks.json")).is_file():
        return ranks.load_saved(data, about.read_bytes())
    beside = path.with_name("config.json")
    kind = read_json(str(beside), beside.read_bytes()).get("model_type") if beside.is_file() else None
    tokenizer = ranks.TiktokenTokenizer(data, ranks.NAMED.get(ranks.OF_MODELS.get(str(kind), path.stem)))
    renamed = {id: token.content for id, token in config.added().items()}
    if renamed:
        spec = tokenizer.spec
        names = {name: id for id, name in (dict(spec.controls) | renamed).items()}
        roles = {role: names[name] for role in ROLES if (name := config.token_name(role)) in names}
        spec = replace(spec, controls=dict(spec.controls) | renamed, roles=dict(spec.roles) | roles)
        tokenizer = ranks.TiktokenTokenizer(data, spec)
    return _with_config(tokenizer, config)


def _tekken(path: Path, data: bytes, config: TokenizerConfig) -> Tokenizer:
    return _with_config(from_tekken(str(path), data), config)


def _with_config(tokenizer: Tokenizer, config: TokenizerConfig) -> Tokenizer:
    tokenizer.chat_template = config.chat_template
    tokenizer.stop_ids = tuple(dict.fromkeys((*tokenizer.stop_ids, *config.stop_ids)))
    return tokenizer


def _gpt2(path: Path, data: bytes, config: TokenizerConfig) -> Tokenizer:
    vocab_file, merges_file = (_sibling(path, names) for names in (VOCABS, MERGES))
    kind = config.fields.get("tokenizer_class") or "GPT2Tokenizer"
    vocab = read_json(str(vocab_file), vocab_file.read_bytes())
    if not isinstance(vocab, dict):
        raise ValueError(f"{vocab_file} is damaged: expected an object of pieces and their ids")
    checked_ids(str(vocab_file), vocab)
    if not kind.startswith(("GPT2", "PreTrained")) or not set(byte_alphabet().values()) <= set(vocab):
        other = "a vocabulary without GPT-2's 256 bytes" if kind.startswith("GPT2") else f"a {kind}"
        raise ValueError(f"{vocab_file} is of {other}: it is read from a tokenizer.json only")
    lines = merges_file.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    odd = next((pair for pair in pairs if len(pair) != 2), None)
    if odd is not None:
        raise ValueError(f"{merges_file} is damaged: {' '.join(odd)!r} is not two pieces")
    try:
        backend = byte_level_bpe(vocab, [(a, b) for a, b in pairs])
    except Exception as error:  # the library raises nothing more particular
        raise ValueError(f"{merges_file} does not fit {vocab_file}: {' '.join(str(error).split())}") from None
    if config.fields.get("add_prefix_space"):
        backend.pre_tokenizer = ByteLevel(add_prefix_space=True)
    end = "<|endoftext|>"
    roles = {f"{role}_token": end for role in ("bos", "eos", "unk")} if end in vocab else {}
    config = replace(config, fields={**roles, **config.fields})
    return build(backend, config, _files_to_save(vocab_file, merges_file.name))


def _gguf(path: Path, data: bytes, config: TokenizerConfig) -> Tokenizer:
    return from_gguf(read_gguf_header(path).metadata)


def _sibling(path: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (path.parent / name).is_file():
            return path.parent / name
    raise ValueError(f"{path} needs {' or '.join(names)} beside it, and {path.parent} has neither")


def _wordpiece(path: Path, data: bytes, config: TokenizerConfig) -> Tokenizer:
    pieces = data.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocab = {piece: id for id, piece in enumerate(pieces)}
    usual = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "cls", "sep", "pad", "mask")}
    present = {role: name for role, name in usual.items() if name in vocab}
    fields = {**present, **config.fields}
    return build(wordpiece(vocab, fields), replace(config, fields=fields), _files_to_save(path))
