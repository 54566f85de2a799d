from __future__ import annotations

from contextlib import suppress

import pytest

from rankwise.errors import argument, called, check_choice, in_recipe, nearest, remedy

PROXIES = ("constant", "grad_norm", "snip")


@pytest.mark.parametrize(
    ("name", "allowed", "hint"),
    [
        ("grad_nrom", PROXIES, ", did you mean 'grad_norm'?"),
        ("q_porj", {"q_proj", "v_proj", "o_proj"}, ", did you mean 'q_proj'?"),
        ("snip", PROXIES, ", did you mean 'snip'?"),
        ("zzz", PROXIES, ""),
        ("", PROXIES, ""),
        ("snip", (), ""),
    ],
)
def test_the_nearest_name(name: str, allowed: set[str], hint: str) -> None:
    assert nearest(name, allowed) == hint


def test_the_nearest_of_equally_near_names_does_not_depend_on_their_order() -> None:
    names = ["ab1", "ab2", "ab3"]
    assert {nearest("ab", order) for order in (names, names[::-1], iter(names))} == {", did you mean 'ab3'?"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("grad_nrom", "'grad_nrom' is not one of 'constant', 'grad_norm', 'snip', did you mean 'grad_norm'?"),
        ("zzz", "'zzz' is not one of 'constant', 'grad_norm', 'snip'"),
        (None, "None is not one of 'constant', 'grad_norm', 'snip'"),
        (["snip"], "['snip'] is not one of 'constant', 'grad_norm', 'snip'"),
    ],
)
def test_a_choice_that_is_not_allowed_is_named_with_what_is(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=r"^proxy=") as caught:
        check_choice("proxy", value, PROXIES)
    assert str(caught.value).startswith(f"proxy={words}")


def test_an_allowed_choice_passes_even_from_an_iterator() -> None:
    check_choice("proxy", "snip", iter(PROXIES))


def test_a_remedy_is_what_the_user_can_pass_where_he_is() -> None:
    assert remedy(halves=False, breadth=1.0) == "halves=False, breadth=1.0"
    assert argument("draw_losses=...") == "draw_losses=..."
    with called("rankwise.Allocator", mapped=True):
        assert remedy(reduction="sum") == "rankwise.Allocator(plan={'reduction': 'sum'})"
        assert argument("draw_losses=...") == "rankwise.Allocator(draw_losses=...)"
        with called("rankwise.rank_plan"):
            assert remedy(reduction="sum") == "rankwise.rank_plan(reduction='sum')"
        with suppress(KeyError), called("rankwise.rank_plan"):
            raise KeyError
        assert remedy(reduction="sum") == "rankwise.Allocator(plan={'reduction': 'sum'})"
    assert remedy(reduction="sum") == "reduction='sum'"


def test_a_remedy_in_a_recipe_is_its_key_whatever_is_called_inside() -> None:
    with in_recipe(), called("rankwise.AllocationCallback", mapped=True):
        assert remedy(halves=False, breadth=1.0) == "method.plan.halves: false, method.plan.breadth: 1.0"
        found = argument("draw_losses=...")
    assert found == "rankwise.AllocationCallback(draw_losses=...) in a script of your own"
    with suppress(KeyError), in_recipe():
        raise KeyError
    assert remedy(halves=False) == "halves=False"
