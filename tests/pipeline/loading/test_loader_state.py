import dataclasses

import pytest

from pipeline.errors import DataError
from pipeline.files import dump_json, from_json_text, to_json_values
from pipeline.loading.loader_state import LoaderState, MixtureChange, MixturePart, continued

SPATIAL = MixturePart("libero_spatial", "data/spatial", 900, 0.75, "a" * 16, "c" * 16, ())
BAD = "steps/00000-of-00001.arrayrecord:3"
GOAL = MixturePart("libero_goal", "data/goal", 300, 0.25, "b" * 16, "d" * 16, (BAD,))
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


def test_same_loader_resumes_where_it_stopped() -> None:
    assert continued(KEPT, now(SPATIAL, GOAL), new_mixture=False) == KEPT


def test_other_settings_are_never_resumed_on() -> None:
    other = dataclasses.replace(now(SPATIAL, GOAL), fingerprint="e" * 16)
    with pytest.raises(DataError, match=r"fingerprint e+, of this config; found f+. Resume with"):
        continued(KEPT, other, new_mixture=True)


@pytest.mark.parametrize(
    ("mixture", "found"),
    [
        (
            RESHARED,
            "data/spatial: share 0.75 then, 0.5 now; data/goal: share 0.25 then, 0.5 now. Resume",
        ),
        ((SPATIAL,), "data/spatial, data/goal then, data/spatial now"),
        ((GOAL, SPATIAL), "data/goal: name libero_spatial then, libero_goal now, steps 900 then"),
        (
            (dataclasses.replace(SPATIAL, settings="e" * 16), GOAL),
            "found data/spatial: settings c+ then, e+ now. Resume",
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


def test_exclusion_that_is_forgotten_is_reported_with_the_flag_that_repeats_it() -> None:
    forgetting = now(SPATIAL, dataclasses.replace(GOAL, excluded=("a:1",)))
    with pytest.raises(DataError, match=rf"again: --config.data.datasets.1.excluded {BAD} a:1$"):
        continued(KEPT, forgetting, new_mixture=False)
    assert continued(KEPT, forgetting, new_mixture=True).position == 120


def test_dataset_that_has_moved_is_the_same() -> None:
    moved = now(dataclasses.replace(SPATIAL, path="elsewhere"), GOAL)
    state = continued(KEPT, moved, new_mixture=False)
    assert state.changes == ()
    assert state.mixture[0].path == "elsewhere"


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
