"""What pushes of datasets and of policies share: the branch, a card of the user's, the result."""

import dataclasses
from collections.abc import Collection

from pipeline.errors import UserError
from pipeline.hub.card_text import is_signed
from pipeline.hub.hub_address import DATASETS, SCHEME, Repository, parse_repository
from pipeline.hub.hub_client import Hub
from pipeline.terminal import count

CARD_NAME = "README.md"
"""File of a repository that the hub shows as its page."""


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What a push did."""

    repository: Repository
    """The repository at the new commit."""
    is_new: bool
    """Whether the repository was made."""
    is_card_kept: bool
    """Whether a README.md that was written or changed by hand was left as it is."""
    num_deleted: int
    """Files of an earlier push that are not among those of this one."""

    def describe(self, source: str, *, is_private: bool) -> str:
        """Returns what was done, a line each.

        Args:
          source: The directory that was pushed, as the user named it.
          is_private: Whether a repository that was made is private.
        """
        lines = []
        if self.is_new:
            lines.append(f"made a {'private' if is_private else 'public'} repository")
        if self.is_card_kept:
            kept = "which was written or changed by hand; --replace_card replaces it"
            lines.append(f"kept {CARD_NAME}, {kept}")
        if self.num_deleted:
            lines.append(f"deleted {count(self.num_deleted, 'file')} of an earlier push")
        return "\n".join([*lines, f"{source}: pushed as {self.repository}"]) + "\n"


def parse_branch(address: str, *, is_dataset: bool) -> Repository:
    """Reads the address of a repository to push to; its revision is a branch.

    Raises:
      DataError: It is no address of a repository.
      UserError: It is no address at all, one of the other kind, or of a commit.
    """
    kind, other = ("dataset", "policy") if is_dataset else ("policy", "dataset")
    expected = f"{DATASETS if is_dataset else SCHEME}owner/name[@branch]"
    if not address.startswith(SCHEME):
        source, name = ("dataset directory", "DIR") if is_dataset else ("run directory", "RUN")
        plain = expected.removesuffix("[@branch]")
        raise UserError(
            where="octograin push",
            expected=f"a {source}, and behind it its address on the hub",
            found=f"{address} as the address",
            remedy=f"Write octograin push {name} {plain}.",
        )
    repository = parse_repository(address, expected)
    if repository.is_dataset != is_dataset:
        found = f"one of a {other}"
        remedy = f"Push it to {DATASETS if is_dataset else SCHEME}{repository.id}."
    elif repository.is_pinned:
        found, remedy = "one of a commit", "Leave out @revision: a push makes a new commit."
    else:
        return repository
    raise UserError(
        where=address,
        expected=f"the address of a {kind} to push to, {expected}",
        found=found,
        remedy=remedy,
    )


def keeps_card(hub: Hub, repository: Repository, there: Collection[str]) -> bool:
    """Whether a repository has a card that is not as an earlier push wrote it.

    Args:
      hub: The hub.
      repository: The repository, at a commit.
      there: Paths of its files.

    Raises:
      DataError: The card cannot be read.
    """
    return CARD_NAME in there and not is_signed(
        hub.read(repository, CARD_NAME).decode(errors="replace")
    )
