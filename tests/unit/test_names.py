"""Names of models and versions, and the Avro names of outputs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.errors import UsageError
from modelcast.names import ModelRef, ModelVersion, avro_name, check_model_name


@pytest.mark.parametrize("name", ["fraud", "a", "A.b_c-9", "9lives", "x" * 100])
def test_a_model_name_is_letters_digits_dot_underscore_dash(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "a/b", "a b", "ü", "x" * 101, "fraud@3", "a\n"])
def test_what_would_break_a_key_is_no_model_name(name: str) -> None:
    with pytest.raises(UsageError, match="not a model name"):
        check_model_name(name)


def test_a_reference_is_a_model_or_one_version_of_it() -> None:
    assert ModelRef.parse("fraud") == ModelRef("fraud", None)
    assert ModelRef.parse("fraud@12") == ModelRef("fraud", 12)
    assert str(ModelRef.parse("fraud@12")) == "fraud@12"
    assert str(ModelVersion("fraud", 12)) == "fraud@12"


@pytest.mark.parametrize(
    "text", ["fraud@", "fraud@0", "fraud@-1", "fraud@x", "fraud@1@2", "fraud@¹", "fraud@" + "9" * 5000]
)
def test_a_version_is_a_positive_integer(text: str) -> None:
    with pytest.raises(UsageError):
        ModelRef.parse(text)


@given(st.text(max_size=30))
def test_every_output_name_gets_a_legal_avro_name(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", avro_name(name))


def test_legal_names_stay_and_illegal_characters_become_underscores() -> None:
    assert avro_name("probabilities") == "probabilities"
    assert avro_name("dense/BiasAdd:0") == "dense_BiasAdd_0"
    assert avro_name("0") == "_0"
