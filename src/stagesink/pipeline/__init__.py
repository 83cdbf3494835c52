"""A real four-stage pipeline, as ``stagesink demo`` runs it: how sweep, trainer, conversion and benchmark use it.

The data are the digits that scikit-learn ships. All of it needs the extra ``demo``.
"""
