"""A trained model as a policy, loaded from a checkpoint alone: observations in, chunks out."""

from train.policy.execution import Execution, FirstActions, TemporalEnsemble
from train.policy.inputs import TokenEncoder
from train.policy.latency import Latency
from train.policy.observations import Observation
from train.policy.policy import Policy, PolicyConfig
from train.policy.spec import PolicySpec

__all__ = [
    "Execution",
    "FirstActions",
    "Latency",
    "Observation",
    "Policy",
    "PolicyConfig",
    "PolicySpec",
    "TemporalEnsemble",
    "TokenEncoder",
]
