"""Finding what stagesink replaces in other people's code. Nothing of that code is imported or run."""

from stagesink.migration.files import Report, look_through
from stagesink.migration.findings import Finding

__all__ = ["Finding", "Report", "look_through"]
