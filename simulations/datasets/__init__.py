"""Images for simulation, by layout.

Without a path: phantoms. A path is recognised in this order (``LAYOUTS``): a folder with
``labels.csv``; vaults (a run, a folder of sites, one site); NIH ChestX-ray14; Kermany's chest
X-rays; a MedMNIST ``.npz``. Sources are opened without reading an image.
"""

from simulations.datasets.layouts import LAYOUTS, Layout, open_source
from simulations.datasets.source import Item, Source, UnreadableImage, patients_unknown

__all__ = ["LAYOUTS", "Item", "Layout", "Source", "UnreadableImage", "open_source", "patients_unknown"]
