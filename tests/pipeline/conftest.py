"""The pipeline needs the extra ``demo``; without it nothing here can run."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_SKIP_ARTIFACT_LOGGING", raising=False)
