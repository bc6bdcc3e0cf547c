"""plaudit-learner: puts the rooms together and runs the loop; under torchrun, rank 0 does, and the others help."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

from plaudit import base_model, metrics_port, tracing
from plaudit.lifecycle import Occupied, log_to_stderr, on_stop, only_one
from plaudit.settings import parse
from plaudit_learner.config import EXPERIENCE, LearnerSettings

if TYPE_CHECKING:
    from plaudit_learner.ranks import Ranks

log = logging.getLogger(__name__)

PROGRAM = "plaudit-learner"


class Stopped(BaseException):
    """Raised where the main thread stands when asked to stop.

    Nothing needs to be finished first: whatever the learner does, it can be killed at any instant (invariant 9).
    """


def main() -> int:
    """The command; returns its exit status."""
    settings = parse(LearnerSettings, PROGRAM)
    rank = os.environ.get("RANK")  # torchrun's
    name = PROGRAM if rank is None else f"{PROGRAM}[{rank}]"
    log_to_stderr(name, settings.log_format, settings.log_level)
    try:
        on_stop(_stop, exit_with_parent=settings.exit_with_parent)
        from plaudit.artifacts import ArtifactError
        from plaudit.events import EventLogUnavailable
        from plaudit_learner.ranks import Lost, joined
    except Stopped:
        return 0
    try:
        with joined() as ranks:
            run(settings, ranks)
    except Stopped:
        log.info("stopped")
    except (ArtifactError, EventLogUnavailable, Occupied, base_model.ModelNotFound, Lost, OSError, ValueError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except sqlite3.Error as error:  # the event log's are EventLogUnavailable
        print(f"{PROGRAM}: {settings.state_dir / EXPERIENCE}: {error}", file=sys.stderr)
        return 1
    return 0


def _stop() -> None:
    raise Stopped


def run(settings: LearnerSettings, ranks: Ranks) -> None:
    """Learn until something is raised. Raises what main() lists when it cannot start."""
    if not ranks.leads:
        _follow(settings, ranks)
    from prometheus_client import CollectorRegistry

    from plaudit.events import open_log
    from plaudit_learner.experience.store import Experience
    from plaudit_learner.loop import Learner
    from plaudit_learner.metrics import LearnerMetrics
    from plaudit_learner.progress import ProgressSender

    metrics = LearnerMetrics(CollectorRegistry())
    with ExitStack() as down:
        down.enter_context(only_one(settings.state_dir))
        if settings.traces:
            down.enter_context(tracing.on(PROGRAM))
        down.enter_context(metrics_port.serving(metrics.registry, settings.metrics_host, settings.metrics_port))
        model = base_model.resolve(settings.model, settings.model_cache.expanduser())
        event_log = down.enter_context(open_log(settings.event_log))
        store = Experience(settings.state_dir / EXPERIENCE, keep=settings.window)
        down.callback(store.close)
        fingerprint = base_model.fingerprint(model)
        store.belongs_to(fingerprint)
        learner = Learner(
            settings,
            model=model,
            base_model_sha256=fingerprint,
            event_log=event_log,
            store=store,
            metrics=metrics,
            progress=down.enter_context(ProgressSender(event_log)),
            ranks=ranks,
        )
        log.info("learning from %s", settings.event_log)
        learner.run()


def _follow(settings: LearnerSettings, ranks: Ranks) -> NoReturn:
    from plaudit.artifacts import PolicyStore
    from plaudit_learner.follow import follow
    from plaudit_learner.versions import Versions

    model = base_model.resolve(settings.model, settings.model_cache.expanduser())
    copies = settings.state_dir / "ranks" / str(ranks.index)
    policies = PolicyStore(settings.policy_store)
    follow(Versions(policies, copies, model, base_model.fingerprint(model), settings.lora_layers), ranks)


if __name__ == "__main__":
    sys.exit(main())
