"""How the small models beside the backbones are taught: AdamW under one rise and fall of its rate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


def minimise(module: Any, draw_loss: Callable[[], Any], steps: int, learning_rate: float) -> None:
    """Minimise a drawn loss over the parameters of `module`."""
    import torch

    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    start = time.monotonic()
    for step in range(steps):
        loss = draw_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            log.info("step %d loss %.4f, %.0f s", step, loss.item(), time.monotonic() - start)
