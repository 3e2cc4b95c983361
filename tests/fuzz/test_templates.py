"""Chat templates, mutated and hostile: an ending to train on, or one line that says why not, and in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.data.template import Ending, answer_ending
from alignctl.errors import LONGEST_LINE, DataError
from alignctl.models.tiny import TEMPLATE, tiny_tokenizer
from fuzz.mutations import fuzz, mutated

OTHERS = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[Q]' + m['content'] + '[/Q]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}{{ raise_exception('no') }}"
    "{% endif %}{% endfor %}",
    "{%- set ns = namespace(n=0) -%}{%- macro turn(m) -%}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>"
    "{%- endmacro -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}{{ turn(m) }}{%- endfor -%}",
)
HOSTILE = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ lipsum.__globals__ }}{{ joiner }}{{ self.__init__ }}",
    "{% include '/etc/passwd' %}{% import 'os' as os %}{% extends messages %}",
    "{{ messages.append(messages) }}{{ messages.pop() }}{{ messages.clear() }}",
    "{{ 'a' * 10**10 }}",
    "{{ range(10**9) | list | length }}",
    "{{ ('a' * 10**6) | join('b' * 10**4) }}",
    "{{ '%9999999999d' % 1 }}{{ '{:>9999999999}'.format(1) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ 'a' | wordwrap(0) }}{{ 'a' | indent(10**10) }}{{ 'é\ud800' | urlencode }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ strftime_now('%' ~ 'Y' * 10**7) }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{% if 1 %}" * 900 + "{% endif %}" * 900,
    "{{ 1 / 0 }}{{ undefined.x.y }}{{ raise_exception('\x1b[2J' * 100) }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
)
FRAGMENTS = (
    *(
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{%- ",
        " -%}",
        "|",
        "(",
        ")",
        "[",
        "]",
        "'",
        "~",
        "messages",
        "loop",
    ),
    *(
        "[::-1]",
        "| tojson",
        "| safe",
        "{% break %}",
        "{% raw %}",
        "not ",
        "== none",
        "<|im_end|>",
        "\ud800",
        "\x00",
    ),
)
TOKENIZER = tiny_tokenizer()


def check(template: str) -> None:
    """Refused in one printable line, or with an ending that the template really writes after an answer."""
    TOKENIZER.chat_template = template
    try:
        found = answer_ending(TOKENIZER)
    except DataError as error:
        found = error
    if isinstance(found, DataError):
        line = found.render()
        assert line.isprintable()
        assert len(line) <= LONGEST_LINE + len("error: ")
    else:
        assert isinstance(found, Ending)
        end = TOKENIZER.convert_ids_to_tokens(found.token)
        assert found.kept.endswith(end) if found.kept else found.token == TOKENIZER.eos_token_id


SOUND = [text.encode("utf-8", "surrogatepass") for text in (TEMPLATE, *OTHERS)]


@fuzz(60)
@given(data=mutated(SOUND, most=3))
def test_a_mutated_template_has_an_ending_or_is_refused(data: bytes) -> None:
    check(data.decode("utf-8", "replace"))


@fuzz(30)
@given(
    base=st.sampled_from((TEMPLATE, *OTHERS, "")),
    added=st.lists(st.sampled_from((*HOSTILE, *FRAGMENTS)), min_size=1, max_size=3).map(" ".join),
    place=st.floats(0, 1),
)
def test_a_hostile_template_has_an_ending_or_is_refused(base: str, added: str, place: float) -> None:
    cut = int(place * len(base))
    check(base[:cut] + added + base[cut:])


@pytest.mark.parametrize("template", HOSTILE, ids=lambda template: template[:40])
def test_no_hostile_template_is_trained_with(template: str) -> None:
    TOKENIZER.chat_template = template
    with pytest.raises(DataError):
        answer_ending(TOKENIZER)
