"""Images for simulation, by layout: phantoms, a folder with a label sheet, public datasets as downloaded."""

from simulations.datasets.layouts import LAYOUTS, Layout, open_source
from simulations.datasets.source import Item, Source, UnreadableImage, patients_unknown

__all__ = ["LAYOUTS", "Item", "Layout", "Source", "UnreadableImage", "open_source", "patients_unknown"]
