"""What octograin exports, and that it finds its own packages whatever lies beside a script."""

import ast
import importlib
import importlib.machinery
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

import octograin

ROOT = pathlib.Path(__file__).parents[2]


def run(folder: pathlib.Path, *command: object) -> subprocess.CompletedProcess[str]:
    """A command of Python in a folder, with this checkout installed, as it were."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def hostile(tmp_path: pathlib.Path) -> pathlib.Path:
    """A user's folder with a train.py and folders called like octograin's packages."""
    for name in ("pipeline", "converters", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the wrong {name}')")
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')")
    return tmp_path


def test_every_name_is_there_and_known_to_editors() -> None:
    assert all(getattr(octograin, name) is not None for name in octograin.__all__)
    assert sorted(dir(octograin)) == sorted(octograin.__all__)
    stub = ast.parse((ROOT / "octograin" / "__init__.pyi").read_text())
    aliases = [a for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names]
    # `import X as X` is what makes a name of a stub visible to type checkers.
    assert {alias.asname for alias in aliases} == {*octograin.__all__} - {"__version__"}
    assert octograin.open_dataset is importlib.import_module("pipeline.data.dataset").open_dataset
    with pytest.raises(AttributeError, match="module 'octograin' has no attribute 'Lodaer'"):
        _ = octograin.Lodaer  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_it_imports_nothing_heavy(tmp_path: pathlib.Path) -> None:
    result = run(tmp_path, "-c", "import sys, octograin; print(*sys.modules)")
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert "octograin" in loaded
    assert not loaded & {"jax", "numpy", "grain", "tyro", "pipeline", "train", "converters"}


def test_the_finder_leaves_other_modules_alone() -> None:
    found = octograin._OwnPackages.find_spec("pipeline")
    assert found is not None
    assert found.origin == str(ROOT / "pipeline" / "__init__.py")
    for other in ("configs", "pipeline.data.dataset", "numpy"):
        assert octograin._OwnPackages.find_spec(other) is None
    assert isinstance(found, importlib.machinery.ModuleSpec)


def test_a_users_files_of_the_same_names_are_not_in_the_way(
    hostile: pathlib.Path, mini_dataset: pathlib.Path, mini_rlds: pathlib.Path
) -> None:
    shown = run(hostile, "-m", "octograin", "inspect", mini_dataset)
    assert (shown.returncode, shown.stderr) == (0, "")
    (hostile / "train.py").write_text(
        textwrap.dedent("""
        import concurrent.futures, multiprocessing, sys
        import octograin

        def steps(dataset):
            return dataset.num_steps

        if __name__ == "__main__":
            dataset = octograin.open_dataset(sys.argv[1])
            spawn = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
                print(pool.submit(steps, dataset).result())
        """)
    )
    script = run(hostile, "train.py", mini_dataset)
    assert (script.stdout, script.stderr) == ("455\n", "")
    # The workers of a conversion do not see an import below `if __name__ == "__main__"`.
    (hostile / "guarded.py").write_text(
        textwrap.dedent("""
        import sys

        if __name__ == "__main__":
            import octograin
            from converters.job.convert import LocalRunner, convert
            from converters.mapping.mapping_registry import registered
            from converters.sources.open_source import open_source

            source = open_source(sys.argv[1])
            convert(source, "converted", registered("libero"), runner=LocalRunner(2))
            print(octograin.open_dataset("converted").num_steps)
        """)
    )
    guarded = run(hostile, "guarded.py", mini_rlds)
    assert (guarded.stdout, guarded.stderr) == ("455\n", "")


def test_a_file_in_the_way_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.py").touch()
    result = run(tmp_path, "-c", "import train; import octograin")
    expected = f"expected {ROOT / 'train'} as the package train; found {tmp_path / 'train.py'}. "
    assert expected + "Import octograin before it, or rename it." in result.stderr
