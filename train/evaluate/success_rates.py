"""Statistics of success counts: an interval for the rate, and a test of two policies."""

import dataclasses
import math

Z_95 = 1.959963984540054
"""Number of standard deviations that hold 95 % of a normal distribution."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """A count of successes in independent trials."""

    num_successes: int
    """Number of trials that reached the goal."""
    num_trials: int
    """Number of all trials."""

    @property
    def value(self) -> float:
        """Returns the fraction of successes; NaN without trials."""
        return self.num_successes / self.num_trials if self.num_trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Returns Wilson's 95 % interval for the rate; (0, 1) without trials.

        48 of 50     0.8654 to 0.9890
        50 of 50     0.9287 to 1

        Source: Wilson 1927; unlike the normal interval, it holds near 0 and 1 and for few trials.
        """
        n, z = self.num_trials, Z_95
        if n == 0:
            return 0.0, 1.0
        # Shrinks the rate towards one half, by z * z / n.
        center = (self.num_successes + z * z / 2) / (n + z * z)
        half = z / (n + z * z) * math.sqrt(n * self.value * (1 - self.value) + z * z / 4)
        # Rounding may leave [0, 1] by a last digit.
        return max(center - half, 0.0), min(center + half, 1.0)


@dataclasses.dataclass(frozen=True)
class Paired:
    """The outcomes of two policies on the same trials."""

    both: int = 0
    """Number of trials at which both succeeded."""
    only_first: int = 0
    """Number of trials at which only the first succeeded."""
    only_second: int = 0
    """Number of trials at which only the second succeeded."""
    neither: int = 0
    """Number of trials at which neither succeeded."""

    @classmethod
    def of(cls, outcomes: list[tuple[bool, bool]]) -> "Paired":
        """Counts pairs of outcomes of the first and the second policy."""
        return cls(
            both=outcomes.count((True, True)),
            only_first=outcomes.count((True, False)),
            only_second=outcomes.count((False, True)),
            neither=outcomes.count((False, False)),
        )

    @property
    def num_trials(self) -> int:
        """Returns the number of pairs."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p_value(self) -> float:
        """Returns the p-value of McNemar's exact two-sided test; 1 if the policies never differ.

        If the policies are equally good, a trial at which only one succeeds is equally likely to be
        either's: this is the probability of a split at least as uneven as the observed one.

        Source: McNemar 1947; the exact form is the sign test on the trials that differ.
        """
        differing = self.only_first + self.only_second
        tail = sum(
            math.comb(differing, k) for k in range(min(self.only_first, self.only_second) + 1)
        )
        # Two-sided; with equal counts twice the tail would be above 1.
        return min(1.0, 2 * tail / 2**differing)
