"""A command that logs the batches of a loader from a stored state on; tests kill it."""

import pathlib
import sys

from pipeline.data.dataset import open_dataset
from pipeline.files import dump_json, from_json_text, to_json_values, write_text_atomically
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.loader_state import LoaderState


def main() -> None:
    """Logs batches up to the 200th, and stores the state of the loader at the 100th."""
    dataset, num_threads, state_path, log_path = sys.argv[1:]
    config = DataConfig(
        (DatasetConfig(dataset),), "", ("proprio", "vggt_tokens"), num_threads=int(num_threads)
    )
    loader = Loader(config, 4, [open_dataset(dataset)], lambda text: [7])
    path = pathlib.Path(state_path)
    position = 0
    if path.exists():
        state = from_json_text(LoaderState, path.read_text(), where="", remedy="")
        position = loader.restore(state)
    with pathlib.Path(log_path).open("a", buffering=1) as log:
        for batch in loader.batches(position):
            log.write(f"{batch.fingerprint}\n")
            if batch.position == 99 and not path.exists():
                write_text_atomically(path, dump_json(to_json_values(loader.state(100))))
            if batch.position == 199:
                break
