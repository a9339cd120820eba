"""One machine plays the whole federation. From Python and notebooks: ``simulations.simulate(study)``.

Importing this package imports nothing else; what it offers is imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulations.api import simulate
    from simulations.outcome import Simulation

__all__ = ["Simulation", "simulate"]


def __getattr__(name: str) -> Any:
    if name == "simulate":
        from simulations.api import simulate

        return simulate
    if name == "Simulation":
        from simulations.outcome import Simulation

        return Simulation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
