"""Addresses to push to."""

import pytest

from pipeline.errors import UserError
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_push import parse_branch

COMMIT = "0" * 40


def test_a_branch_is_an_address_to_push_to() -> None:
    assert parse_branch("hf://a/b@trial", is_dataset=False) == Repository("a/b", "trial")
    dataset = Repository("a/b", None, is_dataset=True)
    assert parse_branch("hf://datasets/a/b", is_dataset=True) == dataset


@pytest.mark.parametrize(
    ("address", "is_dataset", "message"),
    [
        (
            "data/a",
            True,
            r"found data/a as .*\. Write octograin push DIR hf://datasets/owner/name\.$",
        ),
        ("runs/a", False, r"found runs/a as .*\. Write octograin push RUN hf://owner/name\.$"),
        (
            "hf://a/b",
            True,
            r"a dataset to push to, .*; found one of a policy\. .*hf://datasets/a/b",
        ),
        ("hf://datasets/a/b", False, r"found one of a dataset\. Push it to hf://a/b\.$"),
        (f"hf://datasets/a/b@{COMMIT}", True, r"found one of a commit\. Leave out @revision"),
    ],
)
def test_other_addresses_are_refused(address: str, message: str, *, is_dataset: bool) -> None:
    with pytest.raises(UserError, match=message):
        parse_branch(address, is_dataset=is_dataset)
