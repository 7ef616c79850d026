"""The loss of a whole quantized network as a black box, for the swarms of method 0.

A sensitivity table adds up what each site loses alone. Here an assignment is judged by what the
network itself loses: all quantizers switch at once, the calibration data run through, and the
output is compared with the float network's. No labels are needed, and nothing is traced again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mpq_compile.allocate import Allocation, solve_allocation
from mpq_compile.calibrate import Batch, spread
from mpq_compile.passes.insert_quantizers import set_assignment
from mpq_compile.progress import track
from mpq_compile.sensitivity.divergence import divergence, output_bytes
from mpq_compile.sensitivity.heads import find_heads
from mpq_compile.sensitivity.slices import cut, size_of
from mpq_compile.session import Session
from mpq_compile.solve.black_box import BlackBox, Minimum, minimize_black_box
from mpq_compile.solve.problem import Solution
from mpq_compile.solve.tables import Floats, Ints
from mpq_compile.types import NETWORK, Budget, Plan

# All samples at once: only the shapes of outputs and their power are looked at.
_ALL, _MEMORY_MB = sys.maxsize, 1e9
# Loss of the outputs of a batch against the float network's.
Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], float]


class NetworkLoss:
    """Mean divergence of a quantized network from float on the calibration data.

    Args:
        session: Gives network, ranges and data.
        distance: What is measured of outputs and float outputs; None for the divergence that the
            sensitivity metrics use, which tells class scores from a regression.
        samples: Calibration samples that are used.
    """

    def __init__(
        self, session: Session, distance: Distance | None = None, samples: int = 256
    ) -> None:
        self.network = session.network
        self.graph = session.graph
        self.batches: tuple[Batch, ...] = spread(session.batches, samples)
        self.exact = [self.graph.float_values(batch)["output"] for batch in self.batches]
        self.distance = distance or self._divergence()
        self.known: dict[tuple[tuple[str, str], ...], float] = {}

    def _divergence(self) -> Distance:
        slices = cut(self.batches, self.network, _ALL, output_bytes(self.network), _MEMORY_MB)
        heads = find_heads(self.graph, slices)
        return lambda outputs, exact: float(divergence(heads, exact, outputs).mean())

    def __call__(self, assignment: Mapping[str, str]) -> float:
        """Return the loss of a candidate for every site; each assignment is run once."""
        key = tuple(sorted(assignment.items()))
        if key not in self.known:
            self.known[key] = self._run(assignment)
        return self.known[key]

    def _run(self, assignment: Mapping[str, str]) -> float:
        set_assignment(self.graph.module, self.network, assignment)
        total, samples = 0.0, 0
        with torch.no_grad():
            for batch, exact in zip(self.batches, self.exact, strict=True):
                size = size_of(batch)
                total += size * self.distance(self.graph.module(*batch.inputs), exact)
                samples += size
        return total / samples


def network_black_box(session: Session, budget: Budget, loss: NetworkLoss) -> BlackBox:
    """Return the choice of a candidate for each tie of sites within ``budget``, judged by ``loss``.

    The session's sensitivity table is the estimate by which GC-PSO's repair goes.
    """
    allocation = session.allocation()
    problem = allocation.problem(allocation.limits(budget), budget.peak_activation_bytes)

    def objective(choice: Ints) -> Floats:
        return np.array([loss(sites(row)) for row in track(choice.tolist(), "network loss")])

    def sites(row: Sequence[int]) -> dict[str, str]:
        chosen = zip(problem.groups, row, strict=True)
        return allocation.spread({group.name: group.candidates[c].name for group, c in chosen})

    return BlackBox(problem=problem, objective=objective)


def plan_by_network_loss(
    session: Session,
    budget: Budget,
    solver: str = "gcpso",
    *,
    evaluations: int = 200,
    seed: int = 0,
    loss: NetworkLoss | None = None,
) -> Plan:
    """Return the plan of least loss of the network itself that ``solver`` finds.

    It starts from the plan of the session's own solver, and so is never worse than that.

    Args:
        solver: A black-box solver: gcpso, ppso, greedy or exhaustive.
        evaluations: Assignments that are run over the calibration data.
        loss: What is minimised; by default the divergence from float.

    Raises:
        InfeasibleBudgetError: No assignment is within the budget.
    """
    loss = loss or NetworkLoss(session)
    allocation = session.allocation()
    first = solve_allocation(allocation, budget, session.solver)
    plan, found = improve(
        session,
        budget,
        loss,
        first,
        proof=_proof(allocation, budget, first),
        solver=solver,
        evaluations=evaluations,
        seed=seed,
    )
    note = (
        f"{solver} on the network's own loss: {found.loss:.4g} after {found.evaluations} "
        f"evaluations, {loss(allocation.expand(first)):.4g} by the table and {session.solver}"
    )
    return replace(plan, notes=[*plan.notes, note])


def improve(
    session: Session,
    budget: Budget,
    loss: NetworkLoss,
    first: Solution,
    *,
    proof: Solution,
    solver: str,
    evaluations: int,
    seed: int,
) -> tuple[Plan, Minimum]:
    """Return the plan that a black-box solver makes of a first solution, and what it found.

    ``proof`` answers the session's own table within ``budget``, with a bound. The plan carries it:
    that nothing else loses less cannot be proven of the network's own loss, but that the plan is
    within the budget, and how much less the table says could be lost, can be checked.
    """
    found = minimize_black_box(
        network_black_box(session, budget, loss),
        solver,
        seed=seed,
        evaluations=evaluations,
        start=first.assignment,
    )
    plan = session.plan_for(session.allocation().spread(found.assignment), budget)
    certificate = {
        **proof.certificate,
        **_standing(plan, proof),
        "objective": NETWORK,
        "loss": found.loss,
        "evaluations": found.evaluations,
    }
    return replace(plan, solver=solver, certificate=certificate), found


def _proof(allocation: Allocation, budget: Budget, first: Solution) -> Solution:
    """Return a solution of the table that has a bound: the first one, or the exact solver's."""
    return first if first.bound is not None else solve_allocation(allocation, budget, "exact")


def _standing(plan: Plan, proof: Solution) -> dict[str, object]:
    """Return where the plan's loss by the table stands against the table's bound."""
    assert plan.loss is not None and proof.bound is not None
    gap = (plan.loss - proof.bound) / max(1.0, abs(plan.loss))
    status = proof.status if gap <= (proof.gap or 0.0) else "feasible"
    return {"status": status, "bound": proof.bound, "gap": gap, "wall_s": proof.wall_s}
