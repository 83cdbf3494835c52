"""For people who write sinks: one suite that checks the contract, and a wrapper that breaks any sink to order.

    from stagesink.testing import SinkConformance

    class TestMySink(SinkConformance):
        @pytest.fixture
        def sink(self, tmp_path):
            return MySink(tmp_path)

:class:`SinkConformance` and :func:`check_against_dict` need pytest and hypothesis
(``pip install 'stagesink[testing]'``); :class:`FaultySink` needs neither.

:mod:`stagesink.testing.azurite` and :mod:`stagesink.testing.azureml` start servers: Azure's blob store and Azure ML.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stagesink.testing.faults import (
    FaultySink,
    answers_twice,
    corrupts,
    fails,
    loses_object,
    loses_reply,
    short_list,
    slow,
)
from stagesink.testing.sources import GeneratedSource

if TYPE_CHECKING:
    from stagesink.testing.conformance import SinkConformance
    from stagesink.testing.machine import check_against_dict

__all__ = [
    "FaultySink",
    "GeneratedSource",
    "SinkConformance",
    "answers_twice",
    "check_against_dict",
    "corrupts",
    "fails",
    "loses_object",
    "loses_reply",
    "short_list",
    "slow",
]

_LAZY = {"SinkConformance": "conformance", "check_against_dict": "machine"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
