"""Is everything there that a command will read? Asked before a model is loaded, which takes longer."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pewe.data import TaskConfig, sampled_prefixes, split_path
from pewe.errors import UserError
from pewe.model_files import BackboneConfig, check_folder


def check_data(
    config: TaskConfig, tasks: Sequence[str], splits: Sequence[str], first: bool, full: bool = False
) -> None:
    """Raises UserError for the first file of these splits that is missing; `first`: of the first prefix only."""
    for task in tasks:
        prefixes = sampled_prefixes(config, task)
        for prefix in prefixes[:1] if first else prefixes:
            for split in splits:
                if not (path := split_path(Path(config.task_dir), task, prefix, split, full)).is_file():
                    raise UserError(f"task {task!r}: missing split {split}: there is no file {path}")


def check_backbone(config: BackboneConfig) -> None:
    """Raises UserError for what can be said of the folders of model and tokenizer without loading them."""
    check_folder(config.model)
    if config.tokenizer_path:
        check_folder(config.tokenizer_path, "--tokenizer_path", needs="")


def check_files(paths: Iterable[Path], what: str, hint: str) -> None:
    """Raises UserError that names the first missing file, and how many of them are missing; `hint` says how to make them."""
    paths = list(paths)
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(
            f"there is no checkpoint {missing[0]} ({len(missing)} of {len(paths)} {what} are missing); {hint}"
        )
