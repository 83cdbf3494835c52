"""The engine: lands plans in a sink, and lists, verifies and restores what landed.

It knows neither stages nor backends: it is given a sink, a plan and options.
"""

from __future__ import annotations

from stagesink.transfer.engine import Transfer
from stagesink.transfer.options import TransferOptions
from stagesink.transfer.plan import Plan, plan_archive, plan_file, plan_packed_tree, plan_tree
from stagesink.transfer.progress import Progress, ProgressCallback, progress_callback
from stagesink.transfer.read import list_committed
from stagesink.transfer.restore import Restored, restore, select
from stagesink.transfer.verify import Check, verify

__all__ = [
    "Check",
    "Plan",
    "Progress",
    "ProgressCallback",
    "Restored",
    "Transfer",
    "TransferOptions",
    "list_committed",
    "plan_archive",
    "plan_file",
    "plan_packed_tree",
    "plan_tree",
    "progress_callback",
    "restore",
    "select",
    "verify",
]
