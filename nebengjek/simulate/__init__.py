"""A city of phones: clients that speak only HTTP and WebSocket, ride, pay and check every bill.

``await demo(DemoOptions())`` and ``await simulate(SimulationOptions(trips=...))`` return the exit code.
"""

from nebengjek.simulate.options import DemoOptions, SimulationOptions
from nebengjek.simulate.run import demo, simulate

__all__ = ["DemoOptions", "SimulationOptions", "demo", "simulate"]
