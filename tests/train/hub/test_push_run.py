"""Pushes of runs to a hub on this machine."""

import contextlib
import json
import re
import shutil

import pytest

from pipeline.errors import DataError, UserError
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_push import Pushed
from pipeline.hub.hub_transfer import size
from tests.hub_server import READER, WRITER
from train.checkpoints.checkpoint_copy import copy_checkpoint
from train.hub.published_run import PublishedRun
from train.hub.push_run import Args, publish, push_run
from train.hub.pushed_files import pushed_files

ADDRESS = "hf://owner/name"
NAME = Repository("owner/name", None)
OWN_CARD = b"---\nlicense: mit\n---\nMine.\n"


@pytest.fixture(scope="module")
def run(policy_run, tmp_path_factory):
    """A run with two checkpoints, and files beside them of which some are not pushed."""
    directory = tmp_path_factory.mktemp("pushed") / "run"
    shutil.copytree(policy_run, directory)
    for name in ("description.txt", "report.html", "notes.txt", ".lock", "parts/mine.0a.py.txt"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(name)
    return directory


@pytest.fixture(scope="module")
def files(run):
    """The files of a push of the last checkpoint."""
    with contextlib.ExitStack() as stack:
        published = PublishedRun.of(run, None, ADDRESS, "apache-2.0")
        yield stack.enter_context(pushed_files(run, published, with_optimizer=False))


@pytest.fixture
def as_writer(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return hub


def steps(repository):
    paths = (re.match(r"checkpoints/(\d+)", path) for path in repository.files)
    return {found[1] for found in paths if found}


def test_one_commit_has_a_checkpoint_its_figures_and_a_card(as_writer, files):
    pushed = publish(files, NAME, is_private=True)
    repository = as_writer.repositories["models", "owner/name"]
    assert pushed == Pushed(
        NAME.at_revision(repository.refs["main"]), is_new=True, is_card_kept=False, num_deleted=0
    )
    assert repository.is_private
    assert repository.messages[1:] == ["Push training step 2"]
    assert steps(repository) == {"2"}
    others = {path for path in repository.files if not path.startswith("checkpoints/")}
    assert others == {
        *(".gitattributes", "README.md", "description.txt", "report.html", "parts/mine.0a.py.txt")
    }
    total = sum(map(len, repository.files.values())) - len(repository.files[".gitattributes"])
    assert str(files) == f"{len(repository.files) - 1} files, {size(total)}"
    assert repository.files["README.md"].startswith(b'---\nlicense: "apache-2.0"\n')
    assert "checkpoints/2/arrays.safetensors" in repository.files
    assert not any("/state/" in path for path in repository.files)


def test_a_push_replaces_the_one_before_and_nothing_else(as_writer, files, run, capsys):
    publish(files, NAME)
    repository = as_writer.repositories["models", "owner/name"]
    num_files = len(repository.files)
    repository.commit({**repository.files, "video.mp4": b"mine"})
    pushed = push_run(Args(str(run), ADDRESS, checkpoint=1, with_optimizer=True))
    # All but the card and the four files that both pushes have.
    assert pushed.num_deleted == num_files - len((".gitattributes", "README.md", *"123"))
    assert steps(repository) == {"1"}
    assert repository.files["video.mp4"] == b"mine"
    assert b"opt_state" in repository.files["checkpoints/1/state/_METADATA"]
    assert b"at training step 1 of 2" in repository.files["README.md"]
    assert len(repository.messages) == 4
    said = r"training step 1 with its optimizer state: \d+ files, \d+\.\d kB\n"
    assert re.fullmatch(said, capsys.readouterr().out)


def test_a_push_in_half_precision_says_how_far_its_actions_are_from_the_runs(
    as_writer, run, files, capsys
):
    push_run(Args(str(run), ADDRESS, dtype="float16"))
    pushed = as_writer.repositories["models", "owner/name"].files
    name = "checkpoints/2/arrays.safetensors"
    assert len(pushed[name]) < 0.6 * files.paths[name].stat().st_size
    assert b"The parameters are stored as float16. Losses, errors and " in pushed["README.md"]
    assert pushed.keys() >= files.paths.keys()
    found = re.search(
        r"checked: actions, which are up to (\S+), differ .* up to (\S+) in 8 chunks\n",
        capsys.readouterr().out,
    )
    assert found is not None
    assert 0 < float(found[2]) < 0.01 * float(found[1])


def test_a_readme_of_the_users_own_is_replaced_only_where_that_is_said(as_writer, files):
    repository = as_writer.model()
    repository.commit({"README.md": OWN_CARD})
    assert publish(files, NAME).is_card_kept
    assert repository.files["README.md"] == OWN_CARD
    assert steps(repository) == {"2"}
    assert not publish(files, NAME, replace_card=True).is_card_kept
    card = repository.files["README.md"]
    assert card == files.card.encode()
    # One that was edited is the user's own too.
    repository.commit({**repository.files, "README.md": card.replace(b"Octo", b"My Octo")})
    assert publish(files, NAME).is_card_kept
    repository.commit({**repository.files, "README.md": card})
    assert not publish(files, NAME).is_card_kept


def test_files_of_another_kind_of_model_are_not_replaced(as_writer, files):
    repository = as_writer.model()
    repository.commit({"config.json": b"{}", "model.safetensors": b"1"})
    with pytest.raises(UserError, match=r"found config.json, but no checkpoint of octograin"):
        publish(files, NAME)
    assert repository.files == {"config.json": b"{}", "model.safetensors": b"1"}


def test_a_push_to_a_branch_leaves_the_others(as_writer, files):
    repository = as_writer.model()
    repository.refs["trial"] = repository.refs["main"]
    at = publish(files, NAME.at_revision("trial"))
    assert repository.refs["trial"] == at.repository.revision
    assert "README.md" not in repository.files


def test_a_commit_that_came_in_between_is_not_replaced(as_writer, files):
    as_writer.model()
    as_writer.fail("POST .*/commit/", 412, times=1)
    with pytest.raises(DataError, match=r"looked at; found a later commit\. Run the same again"):
        publish(files, NAME)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", r"expected a token that may write there; found none. Log in with `hf auth login`"),
        (READER, r"expected permission; found 403.*To push, it needs the right to write"),
        ("hf_wrong", r"expected a token that the hub accepts; found 401"),
    ],
)
def test_nothing_changes_without_the_right_to_write(hub, files, monkeypatch, token, message):
    repository = hub.model()
    before = dict(repository.files)
    monkeypatch.setenv("HF_TOKEN", token)
    for name in (NAME, Repository("owner/other", None)):
        with pytest.raises(DataError, match=message):
            publish(files, name)
    assert repository.files == before
    assert len(hub.repositories) == 1


def test_a_run_that_cannot_be_pushed_is_refused_before_the_hub_is_asked(
    hub, run, mini_dataset, tmp_path
):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    copy_checkpoint(run, tmp_path / "stripped")
    to = (ADDRESS,)
    cases = [
        (tmp_path / "none", to, {}, "a run, with checkpoints; found no such directory"),
        (ADDRESS, to, {}, "a run, with checkpoints; found no such directory"),
        (tmp_path / "empty", to, {}, "expected a complete checkpoint; found none"),
        (run, to, {"checkpoint": 3}, r"a checkpoint of step 3; found the steps \[1, 2\]"),
        (tmp_path / "stripped", to, {"with_optimizer": True}, "expected an optimizer state"),
        (
            *(run, to, {"with_optimizer": True, "dtype": "float16"}),
            "float32 with --with_optimizer, .*; found float16. Leave out one of the two",
        ),
        (run, ("hf://datasets/owner/name",), {}, "policy to push to, .* found one of a dataset"),
        (run, (f"{ADDRESS}@{'0' * 40}",), {}, "policy to push to, .*; found one of a commit"),
        (run, (f"{ADDRESS}/file",), {}, r"expected hf://owner/name\[@branch\]"),
        (run, ("hf://owner",), {}, "Write the owner, the repository"),
        (ADDRESS, (str(run),), {}, rf"found {run} as the address\. Write octograin push RUN hf://"),
        (mini_dataset, to, {}, "found a dataset directory. Push it to hf://datasets/owner/name"),
    ]
    for directory, address, options, message in cases:
        with pytest.raises(UserError, match=message):
            push_run(Args(str(directory), *address, **options))
    assert hub.log == []


def test_a_corrupt_checkpoint_is_not_pushed(as_writer, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "checkpoints" / "2" / "config" / "metadata"
    config.write_text(json.dumps({**json.loads(config.read_text()), "seed": 1}))
    with pytest.raises(DataError, match="expected its content as saved; found config"):
        push_run(Args(str(tmp_path / "run"), ADDRESS))
    assert as_writer.log == []
