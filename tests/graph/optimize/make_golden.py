#!/usr/bin/env python3
"""Writes golden.json: what PyTorch's losses, optimizers and schedulers give for small inputs.

    python3 tests/graph/optimize/make_golden.py > tests/graph/optimize/golden.json
"""
import json

import torch
import torch.nn.functional as F


def numbers(tensor):
    return [float(value) for value in tensor.detach().double().flatten()]


def pseudo(shape, seed, scale):
    """Values with few digits, so that the JSON is short and exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4096, 4097, shape, generator=generator).double() / 4096 * scale


def losses():
    rows = []
    logits = pseudo((5, 10), 1, 8.0)
    logits[3] *= 64  # saturated probabilities
    teacher = pseudo((5, 10), 2, 8.0)
    labels = torch.tensor([0, 9, 3, 3, 7])
    for reduction in ("sum", "mean"):
        for smoothing in (0.0, 0.1):
            x = logits.clone().requires_grad_()
            loss = F.cross_entropy(x, labels, reduction=reduction, label_smoothing=smoothing)
            loss.backward()
            rows.append(dict(kind="cross_entropy", reduction=reduction, label_smoothing=smoothing,
                             loss=loss.item(), gradient=numbers(x.grad)))
        for temperature in (1.0, 4.0):
            x = logits.clone().requires_grad_()
            loss = F.kl_div(F.log_softmax(x / temperature, 1), F.softmax(teacher / temperature, 1),
                            reduction="batchmean" if reduction == "mean" else "sum") * temperature ** 2
            loss.backward()
            rows.append(dict(kind="distillation", reduction=reduction, temperature=temperature,
                             loss=loss.item(), gradient=numbers(x.grad)))
    return dict(logits=numbers(logits), teacher=numbers(teacher), labels=labels.tolist(), rows=rows)


def optimizers():
    """Two tensors, the second without weight decay, ten steps with a changing learning rate, in float32."""
    rows = []
    steps = 10
    rates = [1e-2, 1e-2, 5e-3, 5e-3, 1e-1, 1e-1, 1e-3, 1e-3, 1e-2, 1e-2]
    start = [pseudo((7,), 3, 1.0).float(), pseudo((4,), 4, 1.0).float()]
    gradients = [[pseudo((7,), 10 + s, 2.0 ** -s).float(), pseudo((4,), 50 + s, 2.0 ** (s - 5)).float()]
                 for s in range(steps)]
    makers = {
        "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=1e-2, foreach=False),
        "sgd_nesterov": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True,
                                                       weight_decay=5e-4, foreach=False),
        "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, weight_decay=5e-4, foreach=False),
    }
    for name, make in makers.items():
        values = [tensor.clone().requires_grad_() for tensor in start]
        optimizer = make([dict(params=[values[0]]), dict(params=[values[1]], weight_decay=0.0)])
        after = []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
            for value, gradient in zip(values, gradients[step]):
                value.grad = gradient.clone()
            optimizer.step()
            after.append([numbers(value) for value in values])
        rows.append(dict(kind=name, after=after))
    return dict(start=[numbers(t) for t in start], gradients=[[numbers(t) for t in g] for g in gradients],
                rates=rates, rows=rows)


def schedules():
    """Learning rate of each of `epochs` x `steps` steps."""
    epochs, steps = 10, 4

    def run(make, every_step):
        value = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([value], lr=0.1)
        scheduler = make(optimizer)
        rates = []
        for _ in range(epochs):
            for _ in range(steps):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                if every_step and len(rates) < epochs * steps:
                    scheduler.step()
            if not every_step:
                scheduler.step()
        return rates

    schedulers = torch.optim.lr_scheduler
    return dict(epochs=epochs, steps=steps, rows=[
        dict(kind="multistep", warmup_epochs=0,
             rates=run(lambda o: schedulers.MultiStepLR(o, [5, 8], gamma=0.1), False)),
        dict(kind="cosine", warmup_epochs=0,
             rates=run(lambda o: schedulers.CosineAnnealingLR(o, epochs * steps), True)),
        dict(kind="one_cycle", warmup_epochs=0,
             rates=run(lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=epochs * steps, pct_start=0.3,
                                                       cycle_momentum=False), True)),
        dict(kind="one_cycle", warmup_epochs=2,
             rates=run(lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=epochs * steps,
                                                       pct_start=2 / epochs, cycle_momentum=False), True)),
    ])


def main():
    print(json.dumps(dict(torch=torch.__version__.split("+")[0], losses=losses(), optimizers=optimizers(),
                          schedules=schedules()), separators=(",", ":")))


if __name__ == "__main__":
    main()
