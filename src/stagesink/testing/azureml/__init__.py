"""Azure ML on your own machine, for tests: the calls about runs, artifacts and datastores over a real Azurite.

    from stagesink.testing.azureml import FakeAzureML

    with FakeAzureML.start(folder) as service:
        run_id = service.new_run(experiment="training")
        os.environ.update(service.environment(run_id))

It is strict where the real service is: a path can be registered once, blob URLs and tokens expire, listings come in
pages, and a batch fails path by path. The bytes are in Azurite, which checks each URL's signature itself.
``python -m stagesink.testing.azureml`` starts it as a process of its own. Azurite is needed
(``npm install -g azurite``), and the package ``trustme`` for https. docs/azureml-protocol.md lists the calls.
"""

from __future__ import annotations

from stagesink.testing.azureml.calls import CALLS
from stagesink.testing.azureml.faults import Faults
from stagesink.testing.azureml.service import FakeAzureML

__all__ = ["CALLS", "FakeAzureML", "Faults"]
