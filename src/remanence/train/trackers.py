"""A run's figures sent to accelerate's trackers, such as TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .log import numbers


def tracker_options(names: Sequence[str], run: str | Path) -> dict[str, Any]:
    """The arguments with which an `Accelerator` logs to trackers, checked before anything starts.

    Args:
        names: of trackers that accelerate knows ("tensorboard", which needs no network, "wandb", "mlflow", ...).
        run: the folder of the run; trackers that write files get `run/trackers`.

    Raises:
        ConfigError: a name that accelerate does not know, or a package that is missing.
    """
    if not names:
        return {}
    if find_spec("accelerate") is None:
        raise ConfigError("trackers need accelerate; install it with: pip install 'remanence[train]'")
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = {str(kind) for kind in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"no tracker {name!r}; accelerate has {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
        if name not in there:
            package = "'remanence[train]'" if name == "tensorboard" else name
            raise ConfigError(f"tracker {name!r} needs its package; install it with: pip install {package}")
    return {"log_with": list(dict.fromkeys(names)), "project_dir": str(Path(run) / "trackers")}


class Trackers:
    """Sends a run's figures to accelerate's trackers; only the main process does. Without names it does nothing.

    Args:
        names: of the trackers, as for `tracker_options`.
        run: the folder of the run.
        config: sent once, flat; None sends none.
        accelerator: made with `Accelerator(**tracker_options(names, run), ...)`; None makes one.
        project: what trackers call the project.
        step: the total step from which the run goes on; TensorBoard forgets what a killed run logged after it.
        options: per tracker, arguments of its own, such as {"wandb": {"name": ...}}.

    Raises:
        ConfigError: as `tracker_options`.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        accelerator: Any = None,
        project: str = "remanence",
        step: int = 0,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        arguments = tracker_options(names, run)
        self.accelerator = accelerator
        if not arguments:
            self.accelerator = None
            return
        if accelerator is None:
            from accelerate import Accelerator

            self.accelerator = Accelerator(**arguments)
        given = {name: dict(values) for name, values in (options or {}).items()}
        if step and "tensorboard" in names:
            given["tensorboard"] = {"purge_step": step + 1} | given.get("tensorboard", {})
        Path(arguments["project_dir"]).mkdir(parents=True, exist_ok=True)
        self.accelerator.init_trackers(project, config=None if config is None else _flat(config), init_kwargs=given)

    def log(self, figures: Mapping[str, Any], step: int | None = None) -> None:
        """Send the numbers of some figures; lists as `recall/0`, `recall/1`, ... `step` is their `total` if None."""
        if self.accelerator is None:
            return
        sent = numbers(figures)
        total = sent.pop("total", None)
        self.accelerator.log(sent, step=int(total) if step is None and total is not None else step)

    def close(self) -> None:
        """Write what is left. Not `Accelerator.end_training`, which would also end the process group."""
        if self.accelerator is not None:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers.clear()
            self.accelerator = None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as trackers take them: `memory.K` and the like; lists as JSON; nothing that is None."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            flat[f"{prefix}{name}"] = value
        elif value is not None:
            flat[f"{prefix}{name}"] = json.dumps(value, default=str)
    return flat
