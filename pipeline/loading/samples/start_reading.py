"""Warns of a run that reads very many records each time it starts."""

import logging
import time
from collections.abc import Iterator, Sequence

_NOTICEABLE_S = 5.0
"""Seconds of reading after which the log says how later runs read nothing."""
_log = logging.getLogger(__name__)


def noticed(episodes: Sequence[int], found: str, remedy: str) -> Iterator[int]:
    """Yields episodes that the caller reads; logs once if that takes longer than five seconds.

    Args:
      episodes: Numbers of the episodes.
      found: What is read at each start.
      remedy: What to do so that it is not.
    """
    started, is_logged = time.monotonic(), False
    for count, episode in enumerate(episodes, start=1):
        yield episode
        if not is_logged and time.monotonic() - started > _NOTICEABLE_S:
            is_logged = True
            _log.warning("%s, %d of %d so far; %s", found, count, len(episodes), remedy)
