import json

import pytest

from experiments.strict_json import loads


@pytest.mark.parametrize(
    "value", [{}, [1, -2.5, 1e300, None, True, "\u00e9"], {"a": {"b": [{}]}, "b": {"b": 1}}]
)
def test_json_is_read(value):
    assert loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "a": 1}', "it says 'a' twice"),
        ('[{"b": {"c": 1, "d": 2, "c": 3}}]', "it says 'c' twice"),
        ("NaN", "NaN is no finite number"),
        ('{"a": [-Infinity]}', "-Infinity is no finite number"),
        ("1e999", "1e999 is no finite number"),
        ("[" * 100_000, "it is nested too deeply"),
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_ambiguous_or_no_number_is_refused(text, why):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the text is compared below
        loads(text)
    assert str(caught.value) == why
