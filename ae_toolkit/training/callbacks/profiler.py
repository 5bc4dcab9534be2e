"""What takes the time in a training step: a few steps are recorded, then the training goes on.

ae train RECIPE --profile       # runs/NAME/profile.json, for chrome://tracing or Perfetto
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ae_toolkit.console import tell
from ae_toolkit.errors import Failure
from ae_toolkit.files import replacing

PASSED = 10  #: steps before anything is recorded: compilation and first touches
WARM = 3  #: steps that warm the recorder itself up
RECORDED = 10  #: steps
SHOWN = 8  #: operators in the table

TRACE = "profile.json"


@contextmanager
def profiling(run: Path | None, device: torch.device) -> Iterator[Callable[[], None]]:
    """Yields what is to be called after every step, which is nothing at all where `run` is None.

    Args:
        run: the run directory that the trace goes to.
        device: where the work is done.
    """
    if run is None:
        yield lambda: None
        return
    kinds = {ProfilerActivity.CPU}
    if device.type == "cuda":
        kinds.add(ProfilerActivity.CUDA)
    # What its library has to say on standard error is meant for its authors.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    passed, done = 0, False

    def keep(recorder: profile) -> None:
        nonlocal done
        if passed <= PASSED + WARM:
            return
        done = True
        try:
            with replacing(run / TRACE) as temporary:
                recorder.export_chrome_trace(str(temporary))
        except Failure as error:
            tell(f"--profile: {error}")
        text = table(recorder, device, num_steps=passed - PASSED - WARM)
        tell(f"{run / TRACE}: {text}")

    when = schedule(wait=PASSED, warmup=WARM, active=RECORDED, repeat=1)
    recorder = profile(activities=kinds, schedule=when, on_trace_ready=keep, acc_events=True)
    recorder.start()

    def after_step() -> None:
        nonlocal passed
        if not done:
            passed += 1
            recorder.step()
            if done:
                recorder.stop()

    try:
        yield after_step
    finally:
        if not done:
            recorder.stop()
        if not done:
            tell(
                f"--profile: nothing was recorded, the training has {PASSED + WARM} steps or fewer"
            )


def table(recorder: profile, device: torch.device, *, num_steps: int) -> str:
    """The operators that took longest, each without those that it calls, a line each."""
    field = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    rows = [(getattr(e, field), e.count, e.key) for e in recorder.key_averages()]
    rows = sorted((row for row in rows if not row[2].startswith("ProfilerStep")), reverse=True)
    total = sum(row[0] for row in rows) or 1
    where = "CPU" if device.type == "cpu" else "GPU"
    head = f"{total / num_steps / 1000:.2f} ms of {where} time a step, in the mean of {num_steps}"
    lines = []
    for spent, count, name in rows[:SHOWN]:
        each = f"{spent / num_steps / 1000:9.3f} ms {count / num_steps:6.1f}x"
        lines.append(f"  {spent / total:6.1%} {each}  {name}")
    return "\n".join([head, *lines])
