"""Budgets that move while training: does any of them beat the plan made once at the start?

Run: python -m studies.where_it_pays.dynamics wikitext2 MODEL DATA --budgets 1500 4000 [--arms grow] [--rates 0.03]
     python -m studies.where_it_pays.dynamics trec DATA --budgets 9216 --rates 0.006

All arms train LoRA on all projections at ``alpha / r = 2``, built at one large rank; a component (a row of ``A`` and a
column of ``B``) that is not open has no gradient and ``B = 0``, so it is not there. Policies:

``once``
    ``rankwise.rank_plan`` by gain alone for the whole budget at the start: the control.
``grow``
    a plan for half of the budget at the start, and a quarter each at 15 % and 30 % of training, planned on the network
    as it is then. Nothing is taken away.
``squeeze``
    three times the budget, spread evenly; at 40 % of training each path's ``s B A`` is cut by the SVD weighted with its
    input's second moment, the largest values per parameter staying over all paths, moments carried along.
``freeze``
    rank 1 everywhere, in visits: random groups of paths that fit the budget train one after the other for equal times
    and stay as they are afterwards. More than the budget contributes in the end, never more trains at once.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from studies.where_it_pays.arms import planned
from studies.where_it_pays.classification import SOURCES, Classification
from studies.where_it_pays.language import Language
from studies.where_it_pays.layout import Layout, spread
from studies.where_it_pays.records import Records
from studies.where_it_pays.training import SCALE, Batch, Candidates
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import get_linear_schedule_with_warmup

ARMS = ("once", "grow", "squeeze", "freeze")
BY_GAIN = {"breadth": 0.0}  # as plans were when this ran
STEPS = {"wikitext2": 150, "trec": 200, "mrpc": 200}
RANK, PROBE, WIDER = 24, 24, 3
GROW, CUT = {0.0: 0.5, 0.15: 0.25, 0.3: 0.25}, 0.4
SETTINGS = {"steps": STEPS, "rank": RANK, "probe_batches": PROBE, "wider": WIDER, "cut": CUT, "scale": SCALE}


class Components:
    """LoRA on all projections, open component by component.

    Args:
        base: The base model.
        candidates: Its paths.
        task_type: PEFT's.
    """

    def __init__(self, base: nn.Module, candidates: Candidates, task_type: str) -> None:
        modules = list(candidates.modules.values())
        config = LoraConfig(task_type=task_type, r=RANK, lora_alpha=int(SCALE * RANK), target_modules=modules)
        self.model: Any = get_peft_model(base, config)
        self.costs = candidates.only()
        self.hosts: dict[str, Any] = {
            name: self.model.get_base_model().get_submodule(candidates.modules[name]) for name in self.costs
        }
        self.open = {name: torch.zeros(RANK, dtype=torch.bool) for name in self.costs}

    def factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return ``A`` (r x i) and ``B`` (o x r) of a path."""
        host = self.hosts[name]
        return host.lora_A["default"].weight, host.lora_B["default"].weight

    def more(self, layout: Layout) -> None:
        """Open that many more components of each path."""
        for name, rank in layout.items():
            closed = (~self.open[name]).nonzero().flatten()
            self.open[name][closed[:rank]] = True

    def only(self, layout: Layout) -> None:
        """Open exactly the first components of each path."""
        for name in self.open:
            self.open[name] = torch.arange(RANK) < layout.get(name, 0)

    def silence(self) -> None:
        """Clear the gradients of what is not open."""
        for name, mask in self.open.items():
            down, up = self.factors(name)
            if down.grad is None or up.grad is None:
                continue
            down.grad[~mask], up.grad[:, ~mask] = 0.0, 0.0

    @property
    def training(self) -> int:
        """How many parameters are open."""
        return sum(int(mask.sum()) * self.costs[name] for name, mask in self.open.items())

    @property
    def contributing(self) -> int:
        """How many parameters belong to components whose ``B`` is not zero, or that are open."""
        count = 0
        for name, mask in self.open.items():
            count += int((mask | self.factors(name)[1].any(0)).sum()) * self.costs[name]
        return count


Plan = Callable[[Any, int], Layout]  # a base model and a budget to ranks
Steps = Iterator[int]


class Policy:
    """What is open, step by step.

    Args:
        components: The adapter.
        budget: Parameters that may train at once.
        steps: Steps of training.
        plan: Makes a plan on a base model.
        probe: Batches to look at.
        seed: Of what is drawn.
    """

    def __init__(
        self, components: Components, budget: int, steps: int, plan: Plan, probe: list[Batch], seed: int
    ) -> None:
        self.components = components
        self.budget = budget
        self.steps = steps
        self.plan = plan
        self.probe = probe
        self.generator = np.random.default_rng([seed, budget])

    def at(self, step: int, optimizer: AdamW) -> None:
        """Open and close what is due before a step."""
        raise NotImplementedError

    def planned_now(self, share: float) -> Layout:
        """Return a plan for a share of the budget, on the network as it is."""
        return self.plan(copy.deepcopy(self.components.model).merge_and_unload().eval(), int(share * self.budget))


class Once(Policy):
    """All at the start."""

    def at(self, step: int, optimizer: AdamW) -> None:
        """Plan before the first step."""
        if step == 0:
            self.components.more(self.planned_now(1.0))


class Grow(Policy):
    """Half at the start, the rest where the network needs it later."""

    def at(self, step: int, optimizer: AdamW) -> None:
        """Plan for what is due."""
        for when, share in GROW.items():
            if step == round(when * self.steps):
                self.components.more(self.planned_now(share))


class Squeeze(Policy):
    """Wide first, then cut."""

    def at(self, step: int, optimizer: AdamW) -> None:
        """Open widely before the first step, cut later."""
        if step == 0:
            largest = dict.fromkeys(self.components.costs, RANK)
            self.components.more(spread(self.components.costs, WIDER * self.budget, self.generator, largest=largest))
        if step == round(CUT * self.steps):
            self.cut(optimizer)

    @torch.no_grad()
    def cut(self, optimizer: AdamW) -> None:
        """Keep the largest weighted singular values per parameter over all paths, within the budget."""
        moments = self._second_moments()
        found = {name: self._rotated(name, moments[name]) for name in self.components.costs}
        ranked = sorted(
            (-(float(value) ** 2) / self.components.costs[name], name, number)
            for name, (values, _, _) in found.items()
            for number, value in enumerate(values)
            if value > 0
        )
        kept: Layout = dict.fromkeys(found, 0)
        left = self.budget
        for _, name, _ in ranked:
            if self.components.costs[name] <= left:
                kept[name] += 1
                left -= self.components.costs[name]
        for name, (_, down, up) in found.items():
            self._put(name, down, up, kept[name], optimizer)
        self.components.only(kept)

    def _second_moments(self) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[..., None]:
            def see(module: nn.Module, args: Any) -> None:
                x = args[0].reshape(-1, args[0].shape[-1]).double()
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + x.T @ x / len(x)

            return see

        handles = [host.register_forward_pre_hook(hook(name)) for name, host in self.components.hosts.items()]
        self.components.model.eval()
        for batch in self.probe[:4]:
            self.components.model(**batch)
        self.components.model.train()
        for handle in handles:
            handle.remove()
        return sums

    def _rotated(self, name: str, moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return singular values of ``B A C^(1/2)``, and the factors of its truncations, best component first."""
        down, up = (factor.double() for factor in self.components.factors(name))
        values, vectors = torch.linalg.eigh(moment)
        root = vectors @ torch.diag(values.clamp_min(1e-12 * float(values.max())).sqrt()) @ vectors.T
        u, sigma, vh = torch.linalg.svd(up @ down @ root, full_matrices=False)
        count = min(RANK, len(sigma))
        u, sigma, vh = u[:, :count], sigma[:count], vh[:count]
        real = sigma > 1e-9 * sigma[0].clamp_min(1e-30)
        scale = sigma.sqrt() * real
        unrooted = torch.linalg.solve(root, vh.T).T
        # A as large as it was, as Adam's steps on B count in units of A: |A'| = |A|
        size = down.norm(dim=1).mean() / (scale[:, None] * unrooted).norm(dim=1).clamp_min(1e-30) * real
        return sigma * real, size[:, None] * scale[:, None] * unrooted, u * (scale / size.where(real, torch.ones(())))

    def _put(self, name: str, down: Tensor, up: Tensor, rank: int, optimizer: AdamW) -> None:
        """Give a path its new factors, and its moments in the new coordinates."""
        a, b = self.components.factors(name)
        turn = torch.zeros(RANK, RANK, dtype=torch.float64)  # A' = T A, so g_B' = g_B T^T
        turn[:rank] = (down[:rank] @ torch.linalg.pinv(a.double())) if rank else 0.0
        back = torch.linalg.pinv(turn)  # B' = B T^+, so g_A' = (T^+)^T g_A
        for parameter, first, second in (
            (a, lambda m: back.T @ m, lambda v: back.T.square() @ v),
            (b, lambda m: m @ turn.T, lambda v: v @ turn.T.square()),
        ):
            state = optimizer.state.get(parameter)
            if state:
                state["exp_avg"].copy_(first(state["exp_avg"].double()))
                state["exp_avg_sq"].copy_(second(state["exp_avg_sq"].double()))
        b.zero_()
        a[:rank], b[:, :rank] = down[:rank].to(a.dtype), up[:, :rank].to(b.dtype)


class Freeze(Policy):
    """Every path in one long visit."""

    def at(self, step: int, optimizer: AdamW) -> None:
        """Go on to the next group when its time has come."""
        if step == 0:
            self.groups = self._groups()
        length = math.ceil(self.steps / len(self.groups))
        if step % length == 0:
            self.components.only(self.groups[step // length])
            optimizer.state.clear()

    def _groups(self) -> list[Layout]:
        """Return groups that fit the budget, as few as first fit by falling cost needs; who is with whom is drawn."""
        costs, names = self.components.costs, list(self.components.costs)
        drawn = [names[i] for i in self.generator.permutation(len(names))]
        groups: list[Layout] = []
        for name in sorted(drawn, key=lambda name: -costs[name]):
            for group in groups:
                if sum(costs[other] for other in group) + costs[name] <= self.budget:
                    group[name] = 1
                    break
            else:
                groups.append({name: 1})
        return groups


POLICIES: dict[str, type[Policy]] = {"once": Once, "grow": Grow, "squeeze": Squeeze, "freeze": Freeze}


def train(policy: Policy, batches: Iterator[Batch], rate: float) -> dict[str, int]:
    """Train under a policy and return the most parameters that trained at once, and what contributes in the end."""
    model, components = policy.components.model, policy.components
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, policy.steps)
    most = 0
    for step, batch in zip(range(policy.steps), batches, strict=False):
        policy.at(step, optimizer)
        most = max(most, components.training)
        model.train()
        model(**batch).loss.backward()
        components.silence()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        _step(optimizer, components)
        schedule.step()
        optimizer.zero_grad()
    return {"most_at_once": most, "at_the_end": components.training, "contributing": components.contributing}


def _step(optimizer: AdamW, components: Components) -> None:
    """Step, and put back what is closed: momentum from before would still move it."""
    closed = []
    for name, mask in components.open.items():
        down, up = components.factors(name)
        closed.append((down, up, mask, down.detach()[~mask].clone(), up.detach()[:, ~mask].clone()))
    optimizer.step()
    with torch.no_grad():
        for down, up, mask, rows, columns in closed:
            down[~mask], up[:, ~mask] = rows, columns


def run_arm(task: Language | Classification, key: dict[str, Any]) -> dict[str, Any]:
    """Train under a policy, and return the run's record."""
    seed, language = key["seed"], isinstance(task, Language)
    base: Any = task.model() if isinstance(task, Language) else task.model(seed)
    candidates = Candidates(base)
    probe = task.probe(seed, PROBE)

    def plan(model: Any, budget: int) -> Layout:
        for parameter in model.parameters():
            parameter.requires_grad = True
        found = planned(model, probe, candidates, budget=budget, seed=seed, space="linear", options=BY_GAIN)
        return found.layout

    torch.manual_seed(seed)
    components = Components(base, candidates, "CAUSAL_LM" if language else "SEQ_CLS")
    policy = POLICIES[key["arm"]](components, key["budget"], STEPS[key["task"]], plan, probe, seed)
    counts = train(policy, task.batches(seed), key["rate"])
    assert counts["at_the_end"] <= key["budget"], (counts, key)
    if isinstance(task, Language):
        return {**key, **counts, "test_loss": task.loss(components.model)}
    held, _ = task.measure(components.model, task.held_out)
    test, accuracy = task.measure(components.model, task.test)
    return {**key, **counts, "held_out_loss": held, "test_loss": test, "test_accuracy": accuracy}


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["wikitext2", *sorted(SOURCES)])
    parser.add_argument("folders", type=Path, nargs="+", help="MODEL DATA for wikitext2, DATA for a classification")
    parser.add_argument("--budgets", type=int, nargs="+", required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/where-it-pays/dynamics.json"))
    given = parser.parse_args()
    task = Language(*given.folders) if given.task == "wikitext2" else Classification(given.task, *given.folders)
    records = Records(given.out, SETTINGS)
    for rate, seed, budget, arm in itertools.product(given.rates, given.seeds, given.budgets, given.arms):
        key = {"task": given.task, "arm": arm, "budget": budget, "rate": rate, "seed": seed}
        if records.find(key) is None:
            record = run_arm(task, key)
            records.add(record)
            print(record, flush=True)


if __name__ == "__main__":
    main()
