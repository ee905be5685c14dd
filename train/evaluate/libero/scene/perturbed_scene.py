"""Changes what the cameras of a simulator show, and restores it exactly.

A soft reset of robosuite keeps MuJoCo's model, so each trial first restores the original scene.
"""

import importlib
import re
from typing import Any

import numpy as np

from train.evaluate.libero.scene.perturbations import Draws, Light, Perturbations
from train.evaluate.libero.scene.sampled_scene import copies, write

THIRD_PERSON_CAMERA = "agentview"
"""The camera that shows the whole scene."""

_LIGHT_COLORS = ("ambient", "diffuse", "specular")
# Bodies of LIBERO's arenas; robots, objects and fixtures have others.
_ARENA = re.compile(r"world|floor|\w*table")
_VISIBLE_GROUP = 1
"""robosuite's group of the geoms that are drawn; collision shapes are in group 0."""


class PerturbedScene:
    """Perturbs the model of one environment.

    Args:
      env: LIBERO's environment of robosuite 1.4, which makes no hard resets.
    """

    def __init__(self, env: Any) -> None:
        # Not before the environment is made: MuJoCo reads once how to render.
        self._mujoco: Any = importlib.import_module("mujoco")
        model = env.sim.model._model  # noqa: SLF001
        self._context = env.sim._render_context_offscreen  # noqa: SLF001
        self._camera = env.sim.model.camera_name2id(THIRD_PERSON_CAMERA)
        self._model = model
        self._colors = [getattr(model, f"light_{name}") for name in _LIGHT_COLORS]
        # The lamp that moves with the camera.
        self._colors += [getattr(model.vis.headlight, name) for name in _LIGHT_COLORS]
        self._arrays = [
            *(model.cam_pos, model.cam_quat, model.light_pos, model.light_dir),
            *self._colors,
        ]
        self._originals = copies(self._arrays)
        role = int(self._mujoco.mjtTextureRole.mjTEXROLE_RGB)
        self._surfaces = _arena_textures(model, role)
        self._original_textures: list[np.ndarray] = []
        # The floor of LIBERO's floor scenes lies above their offset.
        self._target = _seen_point(model, self._camera, max(float(env.workspace_offset[2]), 0.0))

    def change(self, perturbations: Perturbations, draws: Draws) -> None:
        """Shows a trial's scene, whatever was shown before.

        MuJoCo places cameras and lamps when the state is set, so this comes first.
        """
        write(self._arrays, self._originals)
        if self._original_textures:
            self._paint(self._original_textures)
            self._original_textures = []
        if perturbations.camera:
            self._orbit(draws.camera_rad(perturbations.camera))
        if perturbations.light:
            self._light(draws.light(perturbations.light))
        if perturbations.texture:
            before = [self._texels(surface).copy() for surface in self._surfaces]
            self._paint(
                [
                    _blended(texels, draws.texture(n, *texels.shape[:2]), perturbations.texture)
                    for n, texels in enumerate(before)
                ]
            )
            self._original_textures = before

    def close(self) -> None:
        """Frees MuJoCo's arrays: references of the environment to itself would keep them."""
        self._arrays.clear()
        self._colors.clear()
        del self._context, self._model

    def _orbit(self, angle_rad: float) -> None:
        """Turns the camera around the vertical through the point that it looks at."""
        place, camera = self._model.cam_pos[self._camera], self._model.cam_quat[self._camera]
        place[:] = self._target + _about_vertical(angle_rad) @ (place - self._target)
        turn = np.array([np.cos(angle_rad / 2), 0, 0, np.sin(angle_rad / 2)])
        self._mujoco.mju_mulQuat(camera, turn, camera.copy())

    def _light(self, light: Light) -> None:
        write(self._colors, [color * light.gain for color in self._colors])
        turn = _about_vertical(light.turn_rad).T
        self._model.light_pos[:] = self._target + (self._model.light_pos - self._target) @ turn
        self._model.light_dir[:] = self._model.light_dir @ turn

    def _paint(self, textures: list[np.ndarray]) -> None:
        """Writes the textures of the surfaces, and uploads them to the renderer."""
        # Of several simulators in a process.
        self._context.gl_ctx.make_current()
        for surface, texels in zip(self._surfaces, textures, strict=True):
            self._texels(surface)[:] = texels
            self._mujoco.mjr_uploadTexture(self._model, self._context.con, surface)

    def _texels(self, texture: int) -> np.ndarray:
        """Returns uint8 (h, w, 3): a view of a texture in the model."""
        model, start = self._model, self._model.tex_adr[texture]
        shape = (model.tex_height[texture], model.tex_width[texture], model.tex_nchannel[texture])
        return model.tex_data[start : start + np.prod(shape)].reshape(shape)


def _arena_textures(model: Any, role: int) -> list[int]:
    """Returns the numbers of the color textures of table, floor and walls."""
    is_arena = [
        bool(_ARENA.fullmatch(model.body(body).name)) and group == _VISIBLE_GROUP
        for body, group in zip(model.geom_bodyid, model.geom_group, strict=True)
    ]
    materials = model.geom_matid[is_arena]
    textures = model.mat_texid[materials[materials >= 0], role]
    return sorted({int(texture) for texture in textures if texture >= 0})


def _seen_point(model: Any, camera: int, height_m: float) -> np.ndarray:
    """Returns float64 (3): where a camera's axis meets a horizontal plane."""
    place, forward = model.cam_pos[camera].copy(), -model.cam_mat0[camera].reshape(3, 3)[:, 2]
    return place + forward * (height_m - place[2]) / forward[2]


def _about_vertical(angle_rad: float) -> np.ndarray:
    """Returns float64 (3, 3): a rotation about z, counterclockwise seen from above."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _blended(below: np.ndarray, above: np.ndarray, opacity: float) -> np.ndarray:
    return np.rint((1 - opacity) * below + opacity * above).astype(np.uint8)
