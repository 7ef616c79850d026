import numpy as np
import torch
from net import make

import mpq_compile as mpq

model = make().eval()
images = torch.from_numpy(np.load("data.npz")["x"])
target = "tile_npu.yaml"
best = mpq.plan(model, images[:1], [images], target=target)
budget = mpq.Budget(latency_ms=0.85 * best.predicted.latency_ms)
net = mpq.compile(model, images[:1], [images], target=target, budget=budget)
print(net.plan.assignment)
print(net.plan.predicted.latency_ms, "ms, at most", budget.latency_ms)
assert len(set(net.plan.assignment.values())) > 1
assert torch.equal(net(images), net.reference(images))  # this machine = oracle, bit for bit
