import pytest
import yaml

from densesiam_d2.yaml_keys import load_yaml


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\n'a': 3", "the key a occurs twice, in lines 1 and 3"),
        ("a:\n  b: {c: 1}\n  d:\n  b: 2", "the key b occurs twice, in lines 2 and 4"),
        ("- {1: x, 1: y}", "the key 1 occurs twice, in lines 1 and 1"),
    ],
)
def test_a_key_that_occurs_twice_is_refused(text, says):
    with pytest.raises(yaml.YAMLError, match=says):
        load_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: {x: 1}\nb: {x: 1}\n1: c\n'1': d\n",
        # an inner mapping that is merged before it is read itself, and has its own x over the merged one
        "a: &a {x: 1, y: 2}\nb: {c: {d: &d {<<: *a, x: 3}}}\ne: {<<: *d, y: 4}\n",
        "",
    ],
)
def test_all_else_is_as_in_yaml(text):
    assert load_yaml(text) == load_yaml(text.encode()) == yaml.safe_load(text)
