"""The fields of a request that say which texts may come: OpenAI's response_format, and vLLM's structured_outputs."""

import json
from typing import Any

from lm.decode.grammar import Choice, Grammar, JsonSchema, Regex
from lm.serve.fields import Fields, bad

ANY_OBJECT = json.dumps({"type": "object"})
FORMATS = "text", "json_object", "json_schema"
KINDS = "json", "json_object", "regex", "choice"
MOST_CHOICES, CHOICE_LENGTH = 1000, 10_000


def grammar(fields: Fields) -> tuple[str, Grammar | None]:
    """(the field that asks for a grammar, the grammar), which is None where none does. Raises ApiError."""
    found = {"response_format": _response_format(fields), "structured_outputs": _structured_outputs(fields)}
    asked = [(name, one) for name, one in found.items() if one]
    if len(asked) > 1:
        bad("response_format", "response_format and structured_outputs both say which texts may come: give one")
    return asked[0] if asked else ("", None)


def _response_format(fields: Fields) -> Grammar | None:
    """As OpenAI's; a schema holds whether `strict` or not."""
    part = fields.part("response_format")
    if not part.left:
        return None
    kind = part.text("type")
    if kind not in FORMATS:
        bad("response_format.type", f"response_format.type={kind!r}: expected {', '.join(FORMATS)}")
    own = part.part("json_schema") if kind == "json_schema" else Fields({})
    part.finish()
    if kind != "json_schema":
        return JsonSchema(ANY_OBJECT) if kind == "json_object" else None
    own.text("name"), own.text("description"), own.flag("strict")
    schema = own.take("schema", None, "a JSON schema", dict)
    own.finish()
    if schema is None:
        bad("response_format.json_schema", "response_format.json_schema.schema: expected a JSON schema")
    return JsonSchema(json.dumps(schema))


def _structured_outputs(fields: Fields) -> Grammar | None:
    """As vLLM's: one of a schema, any object, a regular expression and a list of texts."""
    part = fields.part("structured_outputs")
    listed = part.left.get("choice") is not None
    schema: Any = part.take("json", None, "a JSON schema", dict, str)
    anything, pattern = part.flag("json_object"), part.take("regex", None, "a string", str)
    choices = part.strings("choice", MOST_CHOICES, CHOICE_LENGTH)
    part.finish()
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            bad("structured_outputs.json", f"structured_outputs.json is not JSON: {error}")
    asked: list[Grammar] = [] if schema is None else [JsonSchema(json.dumps(schema))]
    asked += [JsonSchema(ANY_OBJECT)] if anything else []
    asked += [] if pattern is None else [Regex(pattern)]
    asked += [Choice(choices)] if listed else []
    if len(asked) > 1:
        bad("structured_outputs", f"structured_outputs: expected one of {', '.join(KINDS)}")
    return asked[0] if asked else None
