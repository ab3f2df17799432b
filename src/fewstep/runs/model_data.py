"""The data set that a model was trained on, opened with the settings of its run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.artifacts.run_folder import settings_in
from fewstep.data.batches import Data
from fewstep.data.facts import DataFacts
from fewstep.runs.build import data_from, dataset_settings


def data_of_model(model: Path, facts: DataFacts, settings: Sequence[str]) -> Data:
    """The data set of conf/dataset, by the name in the model's card, with the settings of the run beside the file.

    The class is that of conf/dataset, whatever the run's folder says.

    Args:
        settings: as typed, like "root=data/birds"; they count before those of the run.

    Raises:
        ValueError, OSError: the data are not there, or others than the model makes.
    """
    values = dataset_settings(facts.name, settings)
    typed = {setting.partition("=")[0] for setting in settings}
    file = model if model.is_dir() else model.parent
    values |= {key: value for key, value in stored(file, facts.name).items() if key in values and key not in typed}
    data = data_from(values, 1, "facts")
    if data.facts != facts:
        raise ValueError(
            f"{model} makes {facts.title}, and the data set is {data.facts.title}; give its settings, like root=PATH"
        )
    return data


def stored(folder: Path, name: str) -> dict[str, Any]:
    """The settings of the data set in a run's folder that say where and how; none where there are none of that name."""
    values = settings_in(folder).get("dataset") if (folder / "config.yaml").is_file() else None
    if not isinstance(values, dict) or values.get("name") != name:
        return {}
    return {key: value for key, value in values.items() if key not in ("name", "_target_")}
