"""The bare engine for bench-stream: vLLM as plaudit-server starts it, asked in its own process.

One line of JSON in is a load; one line out is what it came to. Its prompts are token ids already, and nothing is made
of what it samples: nothing in front of this engine could be faster.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import uvloop

from bench.load import Heard, Load, Request, drive, figures
from bench.sides import TEMPERATURE, cpu
from plaudit.v1.chat_pb2 import Message, Role
from plaudit_server.app import make_engine
from plaudit_server.config import ServerSettings
from plaudit_server.engine import Sampling
from plaudit_server.prompts import ChatTemplate
from plaudit_server.reply import ReplyMaker
from plaudit_server.vllm_engine import VllmEngine, sampling_params


async def main() -> None:
    # vLLM and its processes write to standard output, too: what is answered goes where they do not.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings = ServerSettings(**json.loads(sys.argv[1]))
    model = Path(settings.model)
    template = ChatTemplate(model)
    ours = make_engine(settings, model)
    assert isinstance(ours, VllmEngine)
    await ours.start()
    engine = ours._engine  # vLLM's own object
    eos_token_ids = ReplyMaker(model, settings.max_context).eos_token_ids
    from vllm.inputs import tokens_input

    async def ask(request: Request, prompts: dict[str, list[int]], logprobs: bool) -> Heard:
        params = sampling_params(Sampling(TEMPERATURE, 1.0, request.max_tokens, None, ()), eos_token_ids)
        if not logprobs:
            params.logprobs = None
        prompt = tokens_input(prompts[request.prompt])
        heard = Heard(perf_counter())
        async for output in engine.generate(prompt, params, request.prompt + os.urandom(4).hex()):
            heard.arrivals.append(perf_counter())
            heard.tokens += len(output.outputs[0].token_ids)
        return heard

    gc.collect()
    gc.freeze()  # as plaudit-server and vLLM's own do
    print("ready", file=answers)
    me = psutil.Process()
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked: dict[str, Any] = json.loads(line)
        load = Load(asked["load"]["callers"], [Request(**request) for request in asked["load"]["requests"]])
        prompts = {
            request.prompt: list(template.encode([Message(role=Role.ROLE_USER, content=request.prompt)]))
            for request in load.requests
        }
        before = cpu(me)
        heard = await drive(load, lambda request: ask(request, prompts, asked["logprobs"]))  # noqa: B023
        print(json.dumps(figures(heard, cpu(me) - before)), file=answers)
    await ours.stop()


if __name__ == "__main__":
    uvloop.run(main())
