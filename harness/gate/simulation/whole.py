"""Everything `python -m harness simulate` runs, in order."""

from __future__ import annotations

from dataclasses import asdict

from harness.gate.simulation.shapes import simulate_shapes
from harness.gate.simulation.simulate import Simulation, SimulationPlan, simulate_gate, simulate_savings, simulate_sequence


def simulate(plan: SimulationPlan) -> Simulation:
    """Error rates, power, hard shapes, coverage and savings."""
    return Simulation(asdict(plan), simulate_gate(plan) + simulate_shapes(plan) + simulate_sequence(plan), simulate_savings(plan))
