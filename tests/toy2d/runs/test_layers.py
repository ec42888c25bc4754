"""--l2_layers: which parameter gets which weight, and what is refused in which words."""

import pytest

from toy2d.runs.files import UserError
from toy2d.runs.layers import layer_of, layer_weights, parse_layers

KINDS = {"attention": r"\.attn\.", "conv": r"\.conv\d"}
NAMES = ("a.attn.q", "a.attn.k", "a.conv1", "b.conv2", "b.proj")


@pytest.mark.parametrize(
    ("entries", "weights"),
    [
        (("attention:1",), (1, 1, 0, 0, 0)),
        (("attention:1", "other:0.1"), (1, 1, 0.1, 0.1, 0.1)),
        (("attention:1", "conv:0.5", "other:0"), (1, 1, 0.5, 0.5, 0)),
        ((r"attn\.q$:2", r"^b\.:0.3"), (2, 0, 0, 0.3, 0.3)),
        (("conv:0.3", r"^b\.:0.3"), (0, 0, 0.3, 0.3, 0.3)),  # both say the same: no contradiction
        ((r"b\.(?:conv2|proj):1",), (0, 0, 0, 1, 1)),  # the weight is behind the last colon
    ],
)
def test_weights_of_the_parameters(entries, weights):
    assert tuple(layer_weights(entries, NAMES, KINDS).values()) == weights


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (("conv",), "--l2_layers conv: write PATTERN:WEIGHT, for example conv:0.1"),
        (("conv:-1",), "the weight a finite number >= 0"),
        (("conv:inf",), "the weight a finite number >= 0"),
        (("(conv:1",), "is no regular expression"),
        (("conv:1", "conv:2"), "gives conv two weights; write it once"),
        (("conv:0", "attention:0"), "every weight is 0, so nothing is held"),
        (("norm:1",), r"norm:1 matches none .* attention \(2\), conv \(2\), other \(1\); or a"),
        (("other:1", "attention:1", "conv:1", "proj:2"), "other:1 matches none"),
        (("conv:1", "^b:2"), r"conv:1 and \^b:2 contradict each other at b.conv2"),
        (("attention:2", "other:2"), "the same weight 2, so it distinguishes nothing"),
    ],
)
def test_what_is_refused(entries, said):
    with pytest.raises(UserError, match=said):
        layer_weights(entries, NAMES, KINDS)


def test_a_parameter_has_one_kind_the_first_that_matches():
    assert layer_of("x.attn.conv1", KINDS) == "attention"
    assert layer_of("x.bias", KINDS) == "other"
    assert parse_layers(()) == []
