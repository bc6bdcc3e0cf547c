"""vLLM's model in its scheduler's process, on a CPU.

vLLM runs them in two processes that wait for each other by looking again and again: while one computes, the other
keeps a second core busy with nothing. In one process a core is enough, and the other is free for whoever learns there
(docs/decisions/0013-adapters-on-a-cpu.md). vLLM keeps its two because OpenMP must be told its threads
before a process starts; `omp_threads` tells it.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from plaudit_server.cpu_adapters import GroupedAdapters

_LOOK_SECONDS = 1.0


class CpuExecutor(UniProcExecutor):  # type: ignore[misc]  # vLLM is not type-checked
    """Runs the model where vLLM creates it, with adapters as in cpu_adapters.py."""

    def _init_executor(self) -> None:
        threading.Thread(target=_end_with, args=(os.getppid(),), name="lifeline", daemon=True).start()
        # The one place where vLLM asks which class to use; it takes the answer for a name.
        name = f"{GroupedAdapters.__module__}.{GroupedAdapters.__qualname__}"
        type(current_platform).get_punica_wrapper = classmethod(lambda cls: name)
        super()._init_executor()
        self._adapters: GroupedAdapters | None = None
        if self.vllm_config.lora_config is not None:
            manager = self.driver_worker.worker.get_model().lora_manager
            [self._adapters] = manager.punica_wrapper_mapping.values()
            self._adapters.take_over(Path(self.vllm_config.model_config.model), manager.modules, manager.packed_modules)

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """Run a step, and what adapters do after one."""
        output = super().execute_model(scheduler_output, non_block)
        if self._adapters is not None and scheduler_output.total_num_scheduled_tokens:
            self._adapters.after_step()
        return output


def _end_with(parent: int) -> None:
    """End this process once `parent` has: a server that is killed cannot end its engine, which would go on, and keep
    its memory beside the one that the next server starts."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def omp_threads(config: Any) -> AbstractContextManager[None]:
    """What child processes started meanwhile are told of OpenMP's threads: what vLLM would tell its worker.

    That is one thread for each core but one, bound to its core; VLLM_CPU_OMP_THREADS_BIND chooses others.
    """
    told: AbstractContextManager[None] = OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0)
    return told
