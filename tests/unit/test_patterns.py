"""What `consumer/patterns.py` promises: which names are patterns, and which models they bring."""

from __future__ import annotations

import pytest

from modelcast.consumer.patterns import appeared, check_pattern, is_pattern
from modelcast.errors import UsageError

from .reconciler_rig import Registry


@pytest.mark.parametrize("text", ["fraud-*", "fraud-?", "fraud-[ab]", "*"])
def test_patterns(text: str) -> None:
    assert is_pattern(text)
    assert check_pattern(text) == text


@pytest.mark.parametrize("text", ["fraud", "fraud@3", "fraud.v-2"])
def test_names_are_no_patterns(text: str) -> None:
    assert not is_pattern(text)


@pytest.mark.parametrize("text", ["", "fraud/*", "fraud-*@3", "fraud *", "f" * 201])
def test_what_matches_no_name_is_no_pattern_to_follow(text: str) -> None:
    with pytest.raises(UsageError, match="not a pattern of model names"):
        check_pattern(text)


def test_models_appear_with_their_first_release_and_once() -> None:
    registry = Registry()
    registry.publish(1, "fraud-de")
    registry.put(1, "fraud-fr")
    registry.put(1, "churn")
    before = registry.image
    assert appeared(("fraud-*",), before.models, {}) == ["fraud-fr"]
    assert appeared(("fraud-*", "c*"), before.models, {}) == ["fraud-fr", "churn"]
    registry.release(1, "fraud-de")
    assert appeared(("fraud-*", "c*"), registry.image.models, before.models) == ["fraud-de"]


def test_upper_and_lower_case_differ() -> None:
    registry = Registry()
    registry.put(1, "Fraud-de")
    assert appeared(("fraud-*",), registry.image.models, {}) == []
