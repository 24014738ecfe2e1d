"""Which file is which: a tokenizer from any of the published files, or from a directory in Hugging Face's layout.

A directory's tokenizer.json comes first, then SentencePiece, tiktoken's ranks, GPT-2's pair of files and vocab.txt.
What stands beside them (tokenizer_config.json, special_tokens_map.json, chat_template.jinja, ..) is honoured.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import ByteLevel

from lm.text import ranks, sentence
from lm.text.export import byte_alphabet
from lm.text.gguf import from_gguf
from lm.text.headers import read_gguf_header
from lm.text.protocol import ROLES, Tokenizer
from lm.text.published import Settings, build, byte_pairs, read_json, word_pieces

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
IDS = ("generation_config.json", "config.json")
MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.model")
VOCABS, MERGES = ("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")
WHOLE = ("tokenizer.json", *MODELS, "ranks.tiktoken", *VOCABS, "vocab.txt")
KINDS = "tokenizer.json, SentencePiece's .model, tiktoken's ranks, vocab.json with merges.txt, vocab.txt, .gguf"


def from_directory(folder: Path) -> Tokenizer | None:
    """The tokenizer of a directory, or None where it has none of the files."""
    for name in WHOLE:
        if (folder / name).is_file():
            return from_file(folder / name)
    return None


def from_file(path: Path) -> Tokenizer:
    """The tokenizer whose file this is. Raises ValueError, with the file's name, for one that is none or damaged."""
    data = path.read_bytes() if path.suffix != ".gguf" else b""
    try:
        return _reader(path, data)(path, data, settings(path.parent))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path.parent) in text else f"{path}: {text}") from None


def _reader(path: Path, data: bytes) -> Callable[[Path, bytes, Settings], Tokenizer]:
    if path.name in (*VOCABS, *MERGES):
        return _gpt2
    if path.suffix == ".gguf":
        return _gguf
    if path.suffix == ".json":
        return _tokenizer_json
    if path.suffix == ".txt":
        return _word_pieces
    first = data.split(b"\n", 1)[0].split()
    looks_ranked = len(first) == 2 and first[1].isdigit()
    return _ranks if looks_ranked or path.suffix == ".tiktoken" else _sentence


# ---------------------------------------------------------------- what stands beside


def settings(folder: Path) -> Settings:
    """What the files of a model directory say about control ids."""
    found = {name: read_json(str(folder / name), d) for name, d in _present(folder, (*BESIDE[:3], *IDS)).items()}
    for name, content in found.items():
        if not isinstance(content, dict):
            raise ValueError(f"{folder / name} is damaged: expected an object")
    config = {**found.get("special_tokens_map.json", {}), **found.get("tokenizer_config.json", {})}
    generation = found.get("generation_config.json", {})
    ids = {**found.get("config.json", {}), **generation}
    roles = {r: ids[f"{r}_token_id"] for r in ROLES if isinstance(ids.get(f"{r}_token_id"), int)}
    stops = generation.get("eos_token_id") or ()
    jinja = folder / "chat_template.jinja"
    template = jinja.read_text(encoding="utf-8") if jinja.is_file() else _template(config.get("chat_template"))
    return Settings(config, roles, (stops,) if isinstance(stops, int) else tuple(stops), template)


def _template(found: Any) -> str | dict[str, str] | None:
    return {entry["name"]: entry["template"] for entry in found} if isinstance(found, list) else found


def _present(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _kept(path: Path, *more: str) -> dict[str, bytes]:
    """The files to hand on. A generation_config.json is the model's."""
    return {path.name: path.read_bytes(), **_present(path.parent, (*more, *BESIDE))}


# ---------------------------------------------------------------- the kinds


def _tokenizer_json(path: Path, data: bytes, beside: Settings) -> Tokenizer:
    try:
        backend = Backend.from_str(data.decode())
    except Exception as error:  # the library raises nothing more particular
        raise ValueError(f"{path} is no tokenizer.json, or damaged: {error}") from None
    return build(backend, beside, _kept(path))


def _sentence(path: Path, data: bytes, beside: Settings) -> Tokenizer:
    config = beside.config
    try:
        pieces = sentence.SentencePiece(data)
    except RuntimeError:
        raise ValueError(
            f"{path} is not a SentencePiece model: expected the .model file that its trainer writes"
        ) from None
    if path.name == "sentencepiece.model" or not _present(path.parent, BESIDE):
        return pieces
    added = {id: token.content for id, token in beside.added().items() if token.special or id >= pieces.vocab_size}
    if config.get("extra_ids") and not added:  # T5's sentinels, the last first
        added = {pieces.vocab_size + i: f"<extra_id_{config['extra_ids'] - 1 - i}>" for i in range(config["extra_ids"])}
    added = {id: name for id, name in added.items() if id != pieces.unk}
    names = {name: id for id, name in {**pieces.controls, **added}.items()}
    roles = {role: names[name] for role in ROLES if (name := beside.named(role)) in names}
    frame = sentence.Frame(
        added, roles, config.get("add_bos_token"), config.get("add_eos_token"), config.get("legacy") is not False
    )
    return _finished(sentence.SentencePiece(data, frame, _kept(path)), beside)


def _ranks(path: Path, data: bytes, beside: Settings) -> Tokenizer:
    if path.name == "ranks.tiktoken" and (about := path.with_name("ranks.json")).is_file():
        return ranks.saved(data, about.read_bytes())
    tokenizer = ranks.Ranks(data)
    renamed = {id: token.content for id, token in beside.added().items()}
    if renamed:
        known = tokenizer.known
        names = {name: id for id, name in (dict(known.controls) | renamed).items()}
        roles = {role: names[name] for role in ROLES if (name := beside.named(role)) in names}
        known = replace(known, controls=dict(known.controls) | renamed, roles=dict(known.roles) | roles)
        tokenizer = ranks.Ranks(data, known)
    return _finished(tokenizer, beside)


def _finished(tokenizer: Tokenizer, beside: Settings) -> Tokenizer:
    tokenizer.chat_template = beside.chat_template
    tokenizer.stops = tuple(dict.fromkeys((*tokenizer.stops, *beside.stops)))
    return tokenizer


def _gpt2(path: Path, data: bytes, beside: Settings) -> Tokenizer:
    vocab_file, merges_file = (_beside(path, names) for names in (VOCABS, MERGES))
    kind = beside.config.get("tokenizer_class") or "GPT2Tokenizer"
    vocab = read_json(str(vocab_file), vocab_file.read_bytes())
    if not kind.startswith(("GPT2", "PreTrained")) or not set(byte_alphabet().values()) <= set(vocab):
        other = "a vocabulary without GPT-2's 256 bytes" if kind.startswith("GPT2") else f"a {kind}"
        raise ValueError(f"{vocab_file} is of {other}: it is read from a tokenizer.json only")
    lines = merges_file.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    odd = next((pair for pair in pairs if len(pair) != 2), None)
    if odd is not None:
        raise ValueError(f"{merges_file} is damaged: {' '.join(odd)!r} is not two pieces")
    try:
        backend = byte_pairs(vocab, [(a, b) for a, b in pairs])
    except Exception as error:  # the library raises nothing more particular
        raise ValueError(f"{merges_file} does not fit {vocab_file}: {error}") from None
    if beside.config.get("add_prefix_space"):
        backend.pre_tokenizer = ByteLevel(add_prefix_space=True)
    end = "<|endoftext|>"
    roles = {f"{role}_token": end for role in ("bos", "eos", "unk")} if end in vocab else {}
    return build(backend, replace(beside, config={**roles, **beside.config}), _kept(vocab_file, merges_file.name))


def _gguf(path: Path, data: bytes, beside: Settings) -> Tokenizer:
    return from_gguf(read_gguf_header(path).metadata)


def _beside(path: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (path.parent / name).is_file():
            return path.parent / name
    raise ValueError(f"{path} needs {' or '.join(names)} beside it, and {path.parent} has neither")


def _word_pieces(path: Path, data: bytes, beside: Settings) -> Tokenizer:
    pieces = data.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocab = {piece: id for id, piece in enumerate(pieces)}
    usual = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "cls", "sep", "pad", "mask")}
    present = {role: name for role, name in usual.items() if name in vocab}
    config: Mapping[str, Any] = {**present, **beside.config}
    return build(word_pieces(vocab, config), replace(beside, config=config), _kept(path))
