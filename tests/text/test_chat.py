import pytest

from lm.text import sandbox
from lm.text.chat import apply_chat_template, encode_chat, render
from lm.text.ranks import EncodingSpec, TiktokenTokenizer
from lm.text.tokenizer import Bytes, SentencePieceSpec
from tests.text.test_published import LLAMA3_PATTERN, RANKED, TEXTS, rank_file

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
MARKED = """\
{%- set seen = namespace(n=0) %}
{%- for message in messages %}
    {%- if message.skip %}{% continue %}{% endif %}
    {%- set seen.n = seen.n + 1 %}
    {{- '<' + message.role + '>' }}
    {%- if message.role == 'assistant' %}
        {% generation %}{{ message.content | trim }}!{% endgeneration %}
    {%- else %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}
{{ seen.n }}
"""
TALK = [
    {"role": "user", "content": "Hi <b>é</b>"},
    {"role": "assistant", "content": "Yo 😀", "tool_calls": None},
    {"role": "user", "content": "2?"},
    {"role": "assistant", "content": "4 "},
]
CONTROLS = {300: "<|im_start|>", 301: "<|im_end|>", 302: "<s>", 303: "</s>"}
TOKENIZER = TiktokenTokenizer(rank_file(RANKED), EncodingSpec(LLAMA3_PATTERN, CONTROLS, {"bos": 302, "eos": 303}))


def said(template: str, talk: list[dict], **variables: object) -> tuple[str, str]:
    """The whole text, and the assistant's part of it, controls spelled out."""
    TOKENIZER.chat_template = template
    ids, mask = encode_chat(TOKENIZER, talk, **variables)

    def spelled(some: list[int]) -> str:
        raw = [TOKENIZER.controls.get(i, "").encode() or TOKENIZER.bytes_of(i) for i in some]
        return b"".join(raw).decode()

    return spelled(ids), spelled([i for i, yes in zip(ids, mask, strict=True) if yes])


def test_chatml() -> None:
    text = render(CHATML, TALK[:1], add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi <b>é</b><|im_end|>\n<|im_start|>assistant\n"
    )
    whole, answers = said(CHATML, TALK)
    assert whole == render(CHATML, TALK) and answers == "Yo 😀<|im_end|>4 <|im_end|>"


def test_control_tokens_come_from_the_tokenizer() -> None:
    TOKENIZER.chat_template = INST
    assert apply_chat_template(TOKENIZER, TALK[:2]) == "<s>[INST] Hi <b>é</b> [/INST]Yo 😀</s>"
    whole, answers = said(INST, TALK)
    assert whole == apply_chat_template(TOKENIZER, TALK) and answers == "Yo 😀</s>4 </s>"


def test_what_is_said_to_be_generated_is_the_assistants() -> None:
    talk = [*TALK[:2], {"role": "user", "content": "no", "skip": True}, *TALK[2:]]
    assert render(MARKED, talk) == "<user>Hi <b>é</b><assistant>Yo 😀!<user>2?<assistant>4!4"
    whole, answers = said(MARKED, talk)
    assert whole == render(MARKED, talk) and answers == "Yo 😀!4!"


def test_any_character_in_a_message_leaves_the_mask_as_it_is() -> None:
    """Those too that could mark the assistant's part."""
    talk = [
        {"role": "user", "content": "a\ufdd0b\ufdd1"},
        {"role": "assistant", "content": "\ufdd1c\ufdd0d"},
        {"role": "user", "content": "\ufdd0"},
    ]
    whole, answers = said(MARKED, talk)
    assert whole == render(MARKED, talk) and answers == "\ufdd1c\ufdd0d!"
    every = [{"role": "assistant", "content": "".join(map(chr, range(0xFDD0, 0xFDF0)))}]
    with pytest.raises(ValueError, match=r"hold all of Unicode's noncharacters from U\+FDD0 to U\+FDEF: remove them"):
        said(MARKED, every)
    assert said(CHATML, [TALK[0], *every])[1] == every[0]["content"] + "<|im_end|>"


def test_a_template_that_rewrites_earlier_answers_must_say_what_is_generated() -> None:
    forgets = "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '..' }}{% endfor %}"
    with pytest.raises(ValueError, match="renders message 1 in another way when more messages follow"):
        said(forgets, TALK)


def test_any_tokenizer_can_hold_a_chat() -> None:
    for tokenizer in (Bytes().make([]), SentencePieceSpec(600).make(TEXTS)):
        tokenizer.chat_template = INST
        ids, mask = encode_chat(tokenizer, TALK)
        assert ids[0] == tokenizer.bos and ids[-1] == tokenizer.eos and mask[-1] and not mask[0]
        assert tokenizer.decode([i for i, yes in zip(ids, mask, strict=True) if yes]).replace(" ", "") == "Yo😀4"
        assert "".join(tokenizer.decode(ids).split()) == "[INST]Hi<b>é</b>[/INST]Yo😀[INST]2?[/INST]4"


def test_tools_reasoning_and_json() -> None:
    tools = [{"name": "f", "about": "a <é> & 'b'"}]
    assert render("{{ tools | tojson }}", TALK, tools=tools) == '[{"name": "f", "about": "a <é> & \'b\'"}]'
    assert render("{{ tools is none }}{{ x }}", TALK, x=3) == "True3"
    thought = [{"role": "assistant", "content": "4", "thinking": "2+2"}]
    assert render("{{ messages[0].reasoning_content }}", thought) == "2+2"
    assert len(render("{{ strftime_now('%Y-%m-%d') }}", TALK)) == 10
    assert render("{{ messages[1].tool_calls is defined }}", TALK) == "False"
    TOKENIZER.chat_template = {"default": "plain", "tool_use": "tools"}
    assert (
        apply_chat_template(TOKENIZER, TALK) == "plain" and apply_chat_template(TOKENIZER, TALK, tools=tools) == "tools"
    )


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("a\n{% for %}", "the chat template is damaged in line 2"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ raise_exception('not so') }}", "not so"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% set n = namespace() %}{% set n.__x__ = 1 %}", "must not set '__x__'"),
        ("{{ 1 // 0 }}{{ 1 % 0 }}", "zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{{ lipsum(1) }}", "'lipsum' is undefined"),
        ("{{ 2 ** (2 ** 20) > 1 }}", "it asks for more than"),
        ("{{ " + "(" * 300 + "1" + ")" * 300 + " }}", "too deeply nested"),
        ("{% for a in 'b' %}" * 25 + "{% endfor %}" * 25, "too deeply nested: too many statically nested blocks"),
    ],
)
def test_damaged_and_dangerous_templates_are_refused(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        render(template, TALK)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'ab' * 600 }}",
        "{{ (600 * ['ab', 1]) | length }}",
        "{{ 'a' * 900 + 'b' * 900 }}",
        "{{ 'a' * 900 ~ 'b' * 900 }}",
        "{% set n = namespace(x='ab') %}{% for i in range(12) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{{ (2 ** 900) ** 900 }}",
        "{{ 2 ** 900 * 2 ** 900 }}",
        "{{ 'a'.center(1001) }}{{ 'a' | center(1001) }}",
        "{{ 'a'.zfill(1001) }}",
        "{{ ('a' * 100).replace('a', 'b' * 11) | length }}",
        "{{ ('a' * 100) | replace('a', 'b' * 11) | length }}",
        "{{ ('b' * 20).join(['a'] * 100) | length }}",
        "{{ (['a'] * 100) | join('b' * 20) | length }}",
        "{{ '%1001d' % 1 }}",
        "{{ '%.1001f' % 1 }}",
        "{{ '%*d' % (1001, 1) }}",
        "{{ '%1001d' | format(1) }}",
        "{{ '{:1001}'.format(1) }}",
        "{{ '{:{}}'.format(1, 1001) }}",
        "{{ '{a:1001}'.format_map({'a': 1}) }}",
        "{{ [[['a'] * 11] * 11] * 11 }}",
        "{{ ([[['a'] * 11] * 11] * 11) | tojson }}",
        "{{ [1, 2] | tojson(indent=1001) }}",
        "{{ 'a\nb' | indent(1001) }}",
        "{% for i in range(11) %}{% for j in range(101) %}{% endfor %}{% endfor %}",
        "{% for i in range(100) %}{{ 'a' * 11 }}{% endfor %}",
    ],
)
def test_a_template_that_asks_for_too_much_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LIMIT", 1000)
    monkeypatch.setattr(sandbox, "LOOPS", 1000)
    with pytest.raises(ValueError, match="cannot render these messages: it asks for more than 1,000 characters"):
        render(template, TALK)


def test_what_is_large_as_a_number_alone_is_not_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LIMIT", 10_000)
    for template, text in {
        "{{ 10 ** 9 }}{{ (10 ** 9) | tojson }}{{ (10 ** 9) | string }}": "1000000000" * 3,
        "{{ '%d 123456789' % 10 ** 9 }}": "1000000000 123456789",
        "{{ '{} {{123456789}}'.format(123456789) }}": "123456789 {123456789}",
        "{{ 'a-b'.replace('-', ' to ') | center(9) ~ '%5.1f' % 2 }}": "  a to b   2.0",
        "{% for i in range(3) %}{{ i }}{% endfor %}{{ ['a', 'b'] | join(', ') }}{{ 7 % 4 }}": "012a, b3",
    }.items():
        assert render(template, TALK) == text


def test_a_tokenizer_without_a_template_says_so() -> None:
    with pytest.raises(ValueError, match="this tokenizer has no chat template"):
        encode_chat(Bytes().make([]), TALK)
    TOKENIZER.chat_template = {"rag": "x"}
    with pytest.raises(ValueError, match="no chat template is called default: there are rag"):
        encode_chat(TOKENIZER, TALK)
    with pytest.raises(ValueError, match="a message is 'Hi'"):
        render("", ["Hi"])  # type: ignore[list-item]
