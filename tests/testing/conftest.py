from __future__ import annotations

import pytest
from azureml_servers import Caller

from stagesink.testing.azureml import FakeAzureML


@pytest.fixture
def caller(azureml_service: FakeAzureML) -> Caller:
    """Asks about a run of its own."""
    return Caller(azureml_service, azureml_service.new_run())
