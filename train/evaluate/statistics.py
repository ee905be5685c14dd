"""What a count of successes says of the rate behind it, and of two policies on the same trials."""

import dataclasses
import math

Z_95 = 1.959963984540054
"""Of the normal distribution: 95 % lie within so many standard deviations."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """Successes of independent trials."""

    num_successes: int
    """Trials that reached the goal."""
    num_trials: int
    """All trials."""

    @property
    def value(self) -> float:
        """Share of successes; NaN without trials."""
        return self.num_successes / self.num_trials if self.num_trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval for the rate, of 95 %; (0, 1) without trials.

        48 of 50     0.8654 to 0.9890
        50 of 50     0.9287 to 1

        Source: Wilson 1927; unlike the normal one it holds near 0 and 1, and for few trials.
        """
        n, z = self.num_trials, Z_95
        if n == 0:
            return 0.0, 1.0
        center = (self.num_successes + z * z / 2) / (n + z * z)
        half = z / (n + z * z) * math.sqrt(n * self.value * (1 - self.value) + z * z / 4)
        return max(center - half, 0.0), min(center + half, 1.0)


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two policies on the same trials."""

    both: int = 0
    """Trials at which both succeeded."""
    only_first: int = 0
    """Trials at which the first one alone succeeded."""
    only_second: int = 0
    """Trials at which the second one alone succeeded."""
    neither: int = 0
    """Trials at which none succeeded."""

    @classmethod
    def of(cls, outcomes: list[tuple[bool, bool]]) -> "Paired":
        """Counts the pairs of successes of the first and the second policy."""
        return cls(
            both=outcomes.count((True, True)),
            only_first=outcomes.count((True, False)),
            only_second=outcomes.count((False, True)),
            neither=outcomes.count((False, False)),
        )

    @property
    def num_trials(self) -> int:
        """Pairs."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: 1 where the policies never differ.

        Of two equally good policies, a trial at which one alone succeeds is as likely either's: the
        probability of a split at least as uneven as this one.

        Source: McNemar 1947; the exact form is the sign test on the trials that differ.
        """
        differing = self.only_first + self.only_second
        tail = sum(
            math.comb(differing, k) for k in range(min(self.only_first, self.only_second) + 1)
        )
        return min(1.0, 2 * tail / 2**differing)
