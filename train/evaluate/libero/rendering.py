"""Finds an offscreen renderer of MuJoCo that works here, by trying each in its own process.

MuJoCo takes its choice once, as it is imported, and a driver that does not work can end the
process.
"""

import os
import subprocess
import sys
from collections.abc import Mapping

from pipeline.errors import UserError

VARIABLE = "MUJOCO_GL"
"""Environment variable by which MuJoCo itself chooses how to render."""

BACKENDS = ("egl", "osmesa")
"""What needs no display, the faster first."""

APT_PACKAGES = (
    "libosmesa6 libegl1 libegl-mesa0 libgl1 libglx-mesa0 libgl1-mesa-dri libopengl0 libgles2"
)
"""Debian's and Ubuntu's packages, with which both work on a CPU."""

_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 2'/><geom size='1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0, "a black image"
"""
_PROBE_S = 60.0


def choose_backend(environ: Mapping[str, str] = os.environ) -> str:
    """The value of `MUJOCO_GL` with which an image is drawn: the user's own, or one that works.

    It takes a second for each that is tried.

    Raises:
      UserError: Where the user's own, or without one all, fail.
    """
    own = environ.get(VARIABLE)
    failures = {}
    # The user's choice is not replaced by another.
    for backend in (own,) if own else BACKENDS:
        reason = probe(backend, environ)
        if reason is None:
            return backend
        failures[backend] = reason
    change = f"Unset {VARIABLE} to have one chosen, or install" if own else "Install"
    raise UserError(
        where=f"rendering, {VARIABLE}={own or ' or '.join(BACKENDS)}",
        expected="an image without a display",
        found="; ".join(f"{backend}: {reason}" for backend, reason in failures.items()),
        remedy=f"{change} the libraries: apt-get install {APT_PACKAGES}",
    )


def probe(backend: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Why nothing is drawn with a value of `MUJOCO_GL`, in one line; None where it works."""
    command = [sys.executable, "-c", _PROBE]
    # In a process of its own: a broken driver may end it.
    environment = {**environ, VARIABLE: backend}
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no image after {_PROBE_S:g} s"
    if result.returncode == 0:
        return None
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    # An error of taking the renderer down is printed after the one that matters.
    noise = (" ", "Traceback", "Exception ignored")
    errors = [line for line in lines if not line.startswith(noise)]
    return errors[0] if errors else f"the process ended with {result.returncode}"
