"""The scene that a camera shows: as it was when robosuite samples its cameras.

robosuite samples cameras within a step, before its end, and so do the evaluations and data sets
that were published. Here an image is drawn after the step, and only if it is observed, so the scene
of that instant is kept.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

SAMPLING = "sampled_scene"
"""The observable that is sampled with robosuite's cameras."""

# Places and axes in `MjData`: all that MuJoCo draws of LIBERO's scenes, which have no tendons,
# skins or other soft bodies.
_DRAWN = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat"),
    *("site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)


class SampledScene:
    """Keeps a copy of one environment's scene, and draws it.

    It adds an observable to the environment, which has the clock of robosuite's cameras: it is
    sampled once per step, and whenever all observables are updated, such as after a reset.

    Args:
      env: LIBERO's environment of robosuite 1.4, which makes no hard resets.
    """

    def __init__(self, env: Any) -> None:
        model, data = env.sim.model._model, env.sim.data._data  # noqa: SLF001
        # LIBERO lights a stove by the color of a site, and changes it after a step.
        self._present = [*(getattr(data, name) for name in _DRAWN), model.site_rgba]
        self._sampled = copies(self._present)
        # Not before the environment is made: MuJoCo reads once how to render.
        observables: Any = importlib.import_module("robosuite.utils.observables")
        # A function, as robosuite sets an attribute of it.
        sensor = observables.sensor(modality="scene")(lambda _: self._sample())
        # Not active: its value is not among the observations.
        env.add_observable(
            observables.Observable(SAMPLING, sensor, sampling_rate=env.control_freq, active=False)
        )

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Has MuJoCo's model and data hold the sampled scene inside the block, to be drawn."""
        present = copies(self._present)
        write(self._present, self._sampled)
        try:
            yield
        finally:
            write(self._present, present)

    def close(self) -> None:
        """Frees MuJoCo's arrays: references of the environment to itself would keep them."""
        self._present.clear()

    def _sample(self) -> float:
        """Copies the scene, in 5 microseconds; returns a number, as a sensor has to."""
        write(self._sampled, self._present)
        return 0.0


def copies(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Returns a copy of each array."""
    return [array.copy() for array in arrays]


def write(into: list[np.ndarray], arrays: list[np.ndarray]) -> None:
    """Overwrites each array of `into` in place."""
    for one, array in zip(into, arrays, strict=True):
        one[:] = array
