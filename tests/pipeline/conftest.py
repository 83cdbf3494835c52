from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_settings_of_the_machine_in_shared_runs() -> Iterator[None]:
    """The sweep and the demo run once per module, before the fixture that does this for each test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("STAGESINK_", "MLFLOW_", "AZUREML_"))]:
            patch.delenv(name)
        yield
