"""Turns executed actions into the robot's commands, by the rules of its grippers."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.conventions import Conventions, check_has_grippers
from pipeline.loading.transforms.gripper_rules import GripperRule, rules_by_index

if TYPE_CHECKING:
    from train.policy.policy_spec import PolicySpec


class GripperCommands:
    """The grippers of one robot in one episode; each environment and episode needs a new one.

    Args:
      conventions: Conventions of the dataset, which know its grippers.
      action_dims: Names of the action's dimensions; empty: they are numbered from 0.
      rules: Rules by the names of grippers. Without one, a binary gripper opens above 0.5, and a
        continuous one has any opening, as in `restore_gripper`.

    Raises:
      UserError: A rule is for a dimension that is no gripper.
    """

    def __init__(
        self,
        conventions: Conventions,
        action_dims: Sequence[str] = (),
        rules: Sequence[GripperRule] = (),
    ) -> None:
        self._grippers = {gripper.dim: gripper for gripper in conventions.all_grippers}
        self._rules = rules_by_index(rules, conventions, action_dims, "policy")
        self._conventions = conventions
        self._last: dict[int, float] = {}

    @classmethod
    def of(cls, spec: "PolicySpec") -> "GripperCommands":
        """Makes those of a policy, `GripperCommands.of(policy.spec)`."""
        return cls(spec.conventions, spec.action_dims, spec.data.gripper_rules)

    def decide(self, actions: np.ndarray) -> np.ndarray:
        """Returns actions whose grippers are as decided, 1 = open to 0 = close; float32 (n a).

        Args:
          actions: The actions that are executed next, in order, float32 (n a), from `Policy.infer`.

        Raises:
          UserError: The actions lack a gripper.
        """
        check_has_grippers(actions, self._conventions)
        decided = actions.copy()
        for dim, rule in self._rules.items():
            for step, opening in enumerate(actions[:, dim].tolist()):
                self._last[dim] = rule.decide(opening, self._last.get(dim))
                decided[step, dim] = self._last[dim]
        return decided

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Returns actions with the dataset's own commands for the grippers; float32 (n a).

        Args:
          actions: As for `decide`, which it calls: give each executed action once.

        Raises:
          UserError: The actions lack a gripper.
        """
        commands = self.decide(actions)
        for dim, gripper in self._grippers.items():
            # Whatever its kind: the rule has decided, and both ends map to the two commands.
            mapped = dataclasses.replace(gripper, kind="continuous")
            commands[:, dim] = mapped.restore(commands[:, dim])
        return commands
