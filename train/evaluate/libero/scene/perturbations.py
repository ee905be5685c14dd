"""Perturbations of a trial's scene: their sizes, and what each trial draws of them.

The draws depend on the seed, the task and the initial state alone, so all policies meet the same
scenes, and a larger size changes a trial in the same direction.
"""

import colorsys
import dataclasses

import numpy as np

from pipeline.errors import UserError

LARGEST = {"camera": 90.0, "light": 1.0, "texture": 1.0, "start": 0.5}
"""The largest size of each perturbation."""

_NUM_JOINTS = 7
_NUM_WAVES = 4
_PATTERNS = ("plain", "grain", "tiles")
# Darkest and lightest part of a pattern differ by this share.
_CONTRAST = 0.35
_GROUT = 0.04
"""Width of the lines between tiles, as a fraction of a tile."""


@dataclasses.dataclass(frozen=True)
class Perturbations:
    """Sizes of the perturbations of each trial's scene; 0 means none."""

    camera: float = 0.0
    """Degrees, up to 90, by which the third-person camera orbits the point that it looks at."""
    light: float = 0.0
    """Strength, up to 1, of a change of the lamps' brightness, color and direction."""
    texture: float = 0.0
    """Opacity, up to 1, of another texture on table, floor and walls."""
    start: float = 0.0
    """Length in rad, up to 0.5, of a displacement of the arm's seven joints at the start."""

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
          UserError: A size is negative, too large or not finite; all are listed.
        """
        wrong = {name: size for name, size in vars(self).items() if not 0 <= size <= LARGEST[name]}
        if wrong:
            raise UserError(
                where=", ".join(f"--perturb.{name}" for name in wrong),
                expected=" and ".join(f"0 to {LARGEST[name]:g}" for name in wrong),
                found=", ".join(f"{size:g}" for size in wrong.values()),
                remedy="Choose a size in this range; 0 means none.",
            )

    @property
    def sizes(self) -> dict[str, float]:
        """Returns the sizes that are not 0, by name."""
        return {name: size for name, size in vars(self).items() if size}

    def __str__(self) -> str:
        """Such as `camera 10, start 0.1`; `none` if there are none."""
        return ", ".join(f"{name} {size:g}" for name, size in self.sizes.items()) or "none"


NONE = Perturbations()
"""The benchmark's own scenes."""


@dataclasses.dataclass(frozen=True)
class Light:
    """A change of all lamps."""

    gain: np.ndarray
    """float64 (3): factors of the red, green and blue light."""
    turn_rad: float
    """Angle by which the lamps orbit the workspace, counterclockwise seen from above."""


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of one trial.

    Args:
      seed: Seed of the simulator.
      task: Index of the task in its suite.
      init: Index of the initial state.
    """

    seed: int
    task: int
    init: int

    def camera_rad(self, degrees: float) -> float:
        """Returns the camera's orbit, counterclockwise seen from above.

        Even initial states turn it by `degrees`, odd ones by `-degrees`: both sides count alike.
        """
        return np.radians(degrees if self.init % 2 == 0 else -degrees)

    def light(self, size: float) -> Light:
        """Returns the change of the lamps.

        Brightness is multiplied by `1 + size` at initial states 0, 1, 4, 5, ... and divided by it
        at the others; each color channel changes by up to `size / 4` of it, and the lamps orbit by
        up to `180 size` degrees.
        """
        rng = self._rng("light")
        # Not with the camera's sides, so that both combine in all four ways.
        is_brighter = self.init // 2 % 2 == 0
        brightness = 1 + size if is_brighter else 1 / (1 + size)
        tint = 1 + size / 4 * rng.uniform(-1, 1, 3)
        return Light(brightness * tint, np.pi * size * rng.uniform(-1, 1))

    def texture(self, number: int, height: int, width: int) -> np.ndarray:
        """Returns uint8 (height, width, 3): a plain, grained or tiled surface in one hue.

        Args:
          number: Number of the texture, so that table, floor and walls differ.
          height: Rows.
          width: Columns, and rows after which it repeats.
        """
        rng = self._rng("texture", number)
        # Neither garish nor black.
        color = colorsys.hsv_to_rgb(*rng.uniform((0.0, 0.0, 0.4), (1.0, 0.4, 0.95)))
        x, y = np.arange(width) / width, np.arange(height)[:, None] / width
        match _PATTERNS[rng.integers(len(_PATTERNS))]:
            case "plain":
                shade = np.zeros((height, width))
            case "grain":
                # Whole numbers of waves, so that the pattern continues at the edges.
                waves, bends = rng.integers(2, 24, _NUM_WAVES), rng.uniform(0, 0.05, _NUM_WAVES)
                bent = x + bends[:, None, None] * np.sin(2 * np.pi * y)
                shade = 0.5 + 0.5 * np.cos(2 * np.pi * waves[:, None, None] * bent).mean(axis=0)
            case _:
                count = rng.integers(2, 7)
                shade = ((count * x % 1 < _GROUT) | (count * y % 1 < _GROUT)).astype(float)
        lightness = 1 - _CONTRAST * shade
        return np.rint(255 * lightness[..., None] * np.array(color)).astype(np.uint8)

    def joints_rad(self, length: float) -> np.ndarray:
        """Returns float64 (7): a displacement in a random direction, whose norm is `length`."""
        direction = self._rng("start").normal(size=_NUM_JOINTS)
        return length * direction / np.linalg.norm(direction)

    def _rng(self, name: str, number: int = 0) -> np.random.Generator:
        # By axis, so that an axis draws the same alone as with others.
        axis = list(LARGEST).index(name)
        return np.random.default_rng((self.seed, self.task, self.init, axis, number))
