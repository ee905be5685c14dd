import dataclasses

import pytest

from pipeline.errors import DataError
from pipeline.files import dump_json, from_json_text, to_json_values
from pipeline.position import LoaderState, MixtureChange, MixturePart, continued

SPATIAL = MixturePart("libero_spatial", 900, 0.75, "a" * 16, ())
GOAL = MixturePart("libero_goal", 300, 0.25, "b" * 16, ("steps/00000-of-00001.arrayrecord:3",))
KEPT = LoaderState(120, "f" * 16, (SPATIAL, GOAL))
RESHARED = (
    dataclasses.replace(SPATIAL, share=0.5),
    dataclasses.replace(GOAL, share=0.5),
)


def now(*mixture: MixturePart) -> LoaderState:
    return LoaderState(0, KEPT.fingerprint, mixture)


def test_state_is_small_json_and_comes_back() -> None:
    state = dataclasses.replace(KEPT, changes=(MixtureChange(7, (SPATIAL,)),))
    text = dump_json(to_json_values(state))
    assert len(text) < 1000
    assert from_json_text(LoaderState, text, where="here", remedy="") == state


def test_same_loader_goes_on_where_it_stood() -> None:
    assert continued(KEPT, now(SPATIAL, GOAL), new_mixture=False) == KEPT


def test_other_settings_are_never_resumed_on() -> None:
    other = dataclasses.replace(now(SPATIAL, GOAL), fingerprint="e" * 16)
    with pytest.raises(DataError, match=r"fingerprint e+, of this config; found f+. Resume with"):
        continued(KEPT, other, new_mixture=True)


@pytest.mark.parametrize(
    ("mixture", "found"),
    [
        (RESHARED, "libero_spatial: 900 steps, share 0.75, digest a+ then, 900 steps, share 0.5,"),
        ((SPATIAL,), "libero_spatial, libero_goal then, libero_spatial now"),
        ((GOAL, SPATIAL), "libero_spatial, libero_goal then, libero_goal, libero_spatial now"),
        (
            (SPATIAL, dataclasses.replace(GOAL, excluded=())),
            "libero_goal: excluded steps/00000-of-00001.arrayrecord:3 then, not now",
        ),
    ],
)
def test_another_mixture_needs_leave_and_is_recorded(mixture: tuple, found: str) -> None:
    with pytest.raises(DataError, match=rf"{found}.*add --new_mixture"):
        continued(KEPT, now(*mixture), new_mixture=False)
    state = continued(KEPT, now(*mixture), new_mixture=True)
    assert state.position == 120
    assert state.mixture == mixture
    assert state.changes == (MixtureChange(120, KEPT.mixture),)


def test_excluding_another_record_needs_no_leave_and_is_recorded() -> None:
    excluding = dataclasses.replace(SPATIAL, excluded=("steps/00000-of-00001.arrayrecord:9",))
    state = continued(KEPT, now(excluding, GOAL), new_mixture=False)
    assert state.changes == (MixtureChange(120, KEPT.mixture),)


def test_changes_add_up() -> None:
    first = continued(KEPT, now(*RESHARED), new_mixture=True)
    later = dataclasses.replace(first, position=200)
    second = continued(later, now(SPATIAL), new_mixture=True)
    assert [change.position for change in second.changes] == [120, 200]
    assert continued(second, now(SPATIAL), new_mixture=False).changes == second.changes
