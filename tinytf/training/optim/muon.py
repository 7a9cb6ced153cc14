"""Muon for the hidden matrices and AdamW for the rest, as one torch optimizer.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. The same update as `torch.optim.Muon`,
which takes matrices only and orthogonalizes them one by one; here all matrices of a shape go through the
Newton-Schulz iteration as one batch, and one `Optimizer` means one learning-rate schedule, one state dict, and
Lightning's automatic optimization. NorMuon (Li et al. 2025, arXiv:2510.05491) adds Adam's idea to it: each neuron,
a row of its matrix, is divided by the running root mean square of its own updates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from tinytf.training.distributed.dtensor import distribute_like, local_shards, map_full_matrices, sum_over_shards
from tinytf.training.hardware import has_native_bf16

# Quintic that lifts every singular value in (0, 1] to about 1 in five steps, fastest slope at 0 (Jordan 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class MuonAdamW(Optimizer):
    """One optimizer for a transformer.

    The parameter group named ``matrices`` takes Muon's orthogonalized momentum, all others AdamW.

    Args:
        params: parameter groups, each a dict with ``params`` and ``name``, as `parameter_groups` makes them.
        lr: AdamW's step size, of embedding and norms; the matrices have muon_lr.
        muon_lr: Muon's step size, of the matrices: an update is this times a matrix whose singular values are about 1.
        momentum: Muon's momentum, in Nesterov's form.
        ns_steps: Newton-Schulz iterations.
        per_neuron: give each neuron of a matrix its own step size (NorMuon); false is Muon as it was published.
        weight_decay: decoupled weight decay, for every group that does not set its own.
        betas: AdamW's decay rates of the first and second moment; the second is NorMuon's too.
        eps: AdamW's epsilon, which keeps its division finite.

    Raises:
        ValueError: if a number is out of range, no group is named matrices, or one in it has another shape.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 3e-3,
        muon_lr: float = 0.02,
        momentum: float = 0.95,
        ns_steps: int = 5,
        per_neuron: bool = True,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("lr", lr), ("muon_lr", muon_lr), ("weight_decay", weight_decay), ("eps", eps)):
            if value < 0:
                raise ValueError(f"{name} is {value}, but must not be negative")
        for name, value in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}, but must be in [0, 1)")
        groups = [dict(group) if isinstance(group, dict) else {"params": group} for group in params]
        matrices = [group for group in groups if group.get("name") == "matrices"]
        if not matrices:  # Otherwise AdamW would train everything, under Muon's name.
            raise ValueError('no parameter group is named "matrices": pass parameter_groups(model)')
        for group in matrices:
            if any(p.ndim != 2 for p in group["params"]):
                raise ValueError("Muon takes matrices only: a parameter of the group matrices has another shape")
            group.setdefault("lr", muon_lr)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "ns_steps": ns_steps,
            "per_neuron": per_neuron,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if group.get("name") == "matrices":
                self._muon(trained, group)
            else:
                self._adamw(trained, group)
        return loss

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in params:
            by_shape[p.shape].append(p)
        for shape, same in by_shape.items():
            shards, nesterov = local_shards(same), torch.stack(self._nesterov(same, group["momentum"]))
            updates = map_full_matrices(nesterov, same[0], partial(orthogonalize, steps=group["ns_steps"]))
            if group["per_neuron"]:
                updates = self._per_neuron(same, updates, group["betas"][1])
            # A tall matrix gets a larger step, so that its effect on activations is that of a square one.
            lr = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(shards, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(shards, list(updates.unbind()), alpha=-lr)

    def _nesterov(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        grads = local_shards(gradients(params))
        momenta = local_shards(self._state(p, "momentum_buffer")["momentum_buffer"] for p in params)
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        return list(torch._foreach_lerp(grads, momenta, momentum))

    def _per_neuron(self, params: list[Tensor], updates: Tensor, beta2: float) -> Tensor:
        """Updates ``[n, rows, columns]``, each row over its running root mean square, each matrix's norm as it was."""
        like, columns = params[0], params[0].shape[1]
        for p in params:
            if "neuron_sq" not in self.state[p]:
                self.state[p]["neuron_sq"] = distribute_like(updates.new_zeros(p.shape[0], 1), p)
        running = local_shards(self.state[p]["neuron_sq"] for p in params)
        # In float16 the 1e-10 below would be 0, and the first step of q, k and v, which have no gradient yet (what
        # they write passes through zeros), infinity times 0. The state itself has the type of its parameter, which is
        # what torch gives it when it is loaded.
        updates = updates.float()
        # FSDP shards by rows: a row's sum is local, a matrix's is not.
        squares = (updates.square().sum(dim=2, keepdim=True) / columns).to(like.dtype)
        # Without Adam's correction for the start at zero: the matrix's norm, which is put back, cancels it.
        torch._foreach_lerp_(running, list(squares.unbind()), 1 - beta2)
        normed = updates * (torch.stack(running).float() + 1e-10).rsqrt()
        norm, new_norm = (
            sum_over_shards(u.square().sum(dim=(1, 2), keepdim=True), like).sqrt() for u in (updates, normed)
        )
        return (normed * (norm / new_norm.clamp(min=1e-7))).to(like.dtype)

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state(p, "exp_avg", "exp_avg_sq") for p in params]
        for p, state in zip(params, states, strict=True):
            # A loaded one lies on the CPU still: what torch and Lightning move to the device leaves it out.
            state["step"] = state["step"].to(p.device)
        adamw(
            local_shards(params),
            local_shards(gradients(params)),
            local_shards(state["exp_avg"] for state in states),
            local_shards(state["exp_avg_sq"] for state in states),
            [],  # max_exp_avg_sqs, which amsgrad alone has.
            [state["step"] for state in states],
            fused=bool(params),  # No parameter has a gradient if a step that is not finite is skipped.
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, p: Tensor, *buffers: str) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state.update({name: torch.zeros_like(p) for name in buffers})
            if "exp_avg" in buffers:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        return state


def gradients(params: list[Tensor]) -> list[Tensor]:
    """Those of the parameters that have one."""
    return [p.grad for p in params if p.grad is not None]


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end between 0.7 and 1.2.

    Args:
        matrices: ``[n, rows, columns]``; each is treated by itself.
        steps: Newton-Schulz iterations.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.to(torch.bfloat16 if has_native_bf16(x.device) else torch.float32)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
