"""A trained model as a policy: observations in, chunks of actions out, from a checkpoint alone."""

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
