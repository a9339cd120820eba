"""Images for simulation, by layout.

Without a path: phantoms. A path is recognised by the first of ``LAYOUTS`` that knows it. Sources are opened without
reading an image, but where a layout keeps its labels in masks or volumes.
"""

from simulations.datasets.layouts import LAYOUTS, Layout, open_source
from simulations.datasets.source import Item, Source, UnreadableImage, patients_unknown

__all__ = ["LAYOUTS", "Item", "Layout", "Source", "UnreadableImage", "open_source", "patients_unknown"]
