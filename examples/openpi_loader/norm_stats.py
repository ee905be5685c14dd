"""Writes the statistics that a loader normalises by as openpi's `norm_stats.json`.

Source: openpi's `NormStats` and `serialize_json`. A gripper's entries change nothing: openpi's
formulas map -1 to -1 and 1 to 1 with them, because a loader does not normalise grippers.
"""

import json

import numpy as np

from octograin import Loader

_NAMES = {"mean": "mean", "std": "std", "q01": "p01", "q99": "p99"}
_UNCHANGED = {"mean": 0.0, "std": 1.0, "q01": -1.0, "q99": 1.0}


def norm_stats(loader: Loader, state: str = "proprio") -> str:
    """Returns the text of the file, for the `state` and `actions` that `ToOpenpi` returns."""
    keys = {"state": f"observation/{state}", "actions": "action"}
    grippers = loader.spec["action"].raw
    stats = {}
    for name, key in keys.items():
        found, dims = loader.statistics[key][0], loader.spec[key].dims
        is_kept = np.array([name == "actions" and dim in grippers for dim in dims])
        stats[name] = {
            ours: np.where(is_kept, _UNCHANGED[ours], getattr(found, theirs)).tolist()
            for ours, theirs in _NAMES.items()
        }
    return json.dumps({"norm_stats": stats}, indent=2)
