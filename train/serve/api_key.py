"""The key that a server's clients must send, in the header that openpi's client uses."""

import dataclasses
import hmac
import os
import pathlib
import re
from collections.abc import Sequence

from pipeline.errors import UserError

HEADER = "Authorization"
SCHEME = "Api-Key"
VARIABLE = "OCTOGRAIN_API_KEY"
"""Environment variable that holds the key; the command line shows in lists of processes."""
_CHARACTERS = re.compile(r"[!-~]+")


@dataclasses.dataclass(frozen=True)
class ApiKey:
    """A key that every client must send as `Authorization: Api-Key KEY`.

    Raises:
      UserError: The key is empty, or has characters that a header cannot carry.
    """

    text: str = dataclasses.field(repr=False)
    """The key itself, which is printed nowhere."""
    where: str = dataclasses.field(default="api_key", repr=False, compare=False)
    """Where the key comes from, for the error."""

    def __post_init__(self) -> None:
        """Raises an error without the key, which logs would keep."""
        if not _CHARACTERS.fullmatch(self.text):
            raise UserError(
                where=self.where,
                expected="a key of printable ASCII characters without spaces",
                found="another text" if self.text else "an empty one",
                remedy="Make one, for example with `openssl rand -hex 32`.",
            )

    def find_problem(self, sent: Sequence[str]) -> str | None:
        """Returns why a client is refused, without what it sent; None if it sent the key.

        Args:
          sent: The values of the client's `Authorization` headers.
        """
        if not sent:
            return "no API key"
        scheme, _, key = sent[0].partition(" ")
        is_one = len(sent) == 1 and scheme.lower() == SCHEME.lower()
        # In constant time: how long a comparison takes would tell how much of a guess is right.
        # Bytes that are not ASCII arrive as surrogates.
        is_same = hmac.compare_digest(
            key.strip().encode(errors="surrogateescape"), self.text.encode()
        )
        return None if is_one and is_same else "a wrong API key"


def read_api_key(file: str | None) -> ApiKey | None:
    """Returns the key in a file, else the one in OCTOGRAIN_API_KEY, else None.

    Raises:
      UserError: The file cannot be read, or what is there is no key.
    """
    if file is not None:
        try:
            return ApiKey(pathlib.Path(file).read_text(encoding="utf-8").strip(), file)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise UserError(
                where=f"--api_key_file {file}",
                expected="a file with the key",
                found=reason or "bytes that are not UTF-8",
                remedy="Write the key, and nothing else, into it.",
            ) from error
    text = os.environ.get(VARIABLE)
    return None if text is None else ApiKey(text, VARIABLE)
