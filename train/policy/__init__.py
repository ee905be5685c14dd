"""A trained model as a policy, loaded from a checkpoint alone: observations in, chunks out."""

from train.policy.chunk_execution import Execution, FirstActions, TemporalEnsemble
from train.policy.gripper_commands import GripperCommands
from train.policy.latency import Latency, Timing
from train.policy.observations import Observation
from train.policy.planned_actions import PlannedActions
from train.policy.policy import Policy, PolicyConfig
from train.policy.policy_spec import PolicySpec
from train.policy.real_time_chunking import RealTimeChunking
from train.policy.rollout_tokens import TokenEncoder

__all__ = [
    "Execution",
    "FirstActions",
    "GripperCommands",
    "Latency",
    "Observation",
    "PlannedActions",
    "Policy",
    "PolicyConfig",
    "PolicySpec",
    "RealTimeChunking",
    "TemporalEnsemble",
    "Timing",
    "TokenEncoder",
]
