"""ChatService: one request in, one reply streamed out as it is sampled, one interaction recorded."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from plaudit import tracing
from plaudit.events import INTERACTIONS, Record
from plaudit.tracing import Span
from plaudit.v1 import chat_pb2_grpc
from plaudit.v1.chat_pb2 import Delta, Finished, Message, Started, StreamChatRequest, StreamChatResponse
from plaudit.v1.events_pb2 import Interaction
from plaudit.v1.sampling_pb2 import FinishReason, SamplingParameters
from plaudit_server import calls
from plaudit_server.admission import RESTART_SECONDS, Admission
from plaudit_server.calls import Call
from plaudit_server.config import ServerSettings
from plaudit_server.engine import Engine, EngineError, Generation, PolicyVersion, Tokens
from plaudit_server.engine import FinishReason as EngineFinish
from plaudit_server.metrics import ServerMetrics
from plaudit_server.outbox import Outbox
from plaudit_server.prompts import ChatTemplate
from plaudit_server.receipts import Receipts
from plaudit_server.refusal import Refusal, invalid
from plaudit_server.router import Router
from plaudit_server.validation import check_identifier, check_messages, check_sampling

log = logging.getLogger(__name__)

_STALL_SECONDS = 120.0
_SHORT_CHARACTERS = 1000  # of a conversation; measured: 0.3 ms to encode, 0.1 ms more in a thread
_SILENT_SECONDS = 60.0  # between two lines about interactions that could not be recorded

_FINISH = {
    EngineFinish.STOP: FinishReason.FINISH_REASON_STOP,
    EngineFinish.LENGTH: FinishReason.FINISH_REASON_LENGTH,
}


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """Validate → admit → pin a version → wait for a place → sample and stream → record."""

    def __init__(
        self,
        *,
        settings: ServerSettings,
        engine: Engine,
        template: ChatTemplate,
        router: Router,
        receipts: Receipts,
        pseudonym: Callable[[str], str],
        outbox: Outbox,
        metrics: ServerMetrics,
    ) -> None:
        self.admission = Admission(settings, lambda: engine.healthy, metrics)
        self._settings = settings
        self._engine = engine
        self._template = template
        self._router = router
        self._receipts = receipts
        self._pseudonym = pseudonym
        self._outbox = outbox
        self._metrics = metrics
        self._silent_until = 0.0

    async def StreamChat(  # type: ignore[override]  # a coroutine that writes: see below
        self, request: StreamChatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See chat.proto.

        A coroutine that writes, and no generator, because grpc.aio leaves an abandoned generator to the garbage
        collector, but cancels a coroutine at once: the slot in the engine is freed within a token.
        """
        check_messages(request.messages, self._settings)
        check_identifier("user_id", request.user_id, 256)
        check_identifier("conversation_id", request.conversation_id, 256)
        check_identifier("policy_version", request.policy_version, 32)
        sampling = check_sampling(request, self._settings)
        user = self._pseudonym(request.user_id)
        response_id = uuid.uuid4().hex
        # What stays with one side of a canary: the conversation; without its name, the user; without both, nothing.
        conversation = request.conversation_id or user or response_id
        call = calls.current.get()
        with self.admission.enter(user) as place, self._router.pin(request.policy_version, conversation) as version:
            call.reply(response_id, version.name)
            call.span.event("admitted")
            prompt = await self._encode(request.messages)
            room = self._settings.max_context - sampling.max_tokens
            if len(prompt) > room:
                raise invalid(
                    "messages", f"have {len(prompt)} tokens; with max_tokens = {sampling.max_tokens} the most is {room}"
                )
            place.reserve(len(prompt) + sampling.max_tokens)
            with tracing.span("wait for a place in the engine"):
                await place.turn()
            call.waiting_seconds = time.perf_counter() - place.since
            # Who does not want a reply to be learnt from has nothing to vote on.
            receipt = "" if request.unrecorded else self._receipts.issue(response_id, version.name, user)
            started = Started(receipt=receipt, policy_version=version.name, response_id=response_id)
            reply = _Reply(Generation(response_id, prompt, sampling, version), self._metrics, place.since)
            clock = asyncio.get_running_loop().time
            try:
                # Bounds each wait, for the engine's next token and for a caller that does not read.
                async with asyncio.timeout(_STALL_SECONDS) as patience:
                    await context.write(StreamChatResponse(started=started))
                    engine = tracing.span(f"chat {version.name}")
                    try:
                        async with aclosing(self._engine.generate(reply.generation)) as stream:
                            moved_at = clock()
                            async for tokens in stream:
                                if not reply.token_ids:
                                    call.span.event("first token")
                                reply.add(tokens)
                                await context.write(_delta(tokens, request.logprobs))
                                # Each time makes a new timer: not with every token.
                                if (now := clock()) > moved_at + _STALL_SECONDS / 100:
                                    moved_at = now
                                    patience.reschedule(now + _STALL_SECONDS)
                    except EngineError as error:
                        reply.finish_reason = FinishReason.FINISH_REASON_ERROR
                        log.error("reply %s of %s failed: %s", response_id, version.name, error)
                        raise Refusal(
                            grpc.StatusCode.UNAVAILABLE,
                            "the engine failed; please try again",
                            retry_after=RESTART_SECONDS,
                        ) from error
                    finally:
                        # Also when the caller went away: what was sampled until then was sampled.
                        place.spent = len(prompt) + len(reply.token_ids)
                        reply.end()
                        reply.tell(call, engine)
                        if not request.unrecorded:
                            self._record(reply, request.conversation_id, user, pinned=bool(request.policy_version))
                    finished = Finished(
                        finish_reason=reply.finish_reason,
                        prompt_tokens=len(prompt),
                        completion_tokens=len(reply.token_ids),
                    )
                    await context.write(StreamChatResponse(finished=finished))
                    call.span.event("finished")
            except TimeoutError as error:
                raise Refusal(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"nothing moved for {_STALL_SECONDS:g} s: no token was sampled, or none was read",
                ) from error

    async def _encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's token ids. A long conversation takes long, and meanwhile all other streams would stand still:
        that is a thread's. A short one takes as long as going to a thread and back.
        """
        if sum(len(message.content) for message in messages) <= _SHORT_CHARACTERS:
            return self._template.encode(messages)
        return await asyncio.to_thread(self._template.encode, messages)

    def _record(self, reply: _Reply, conversation_id: str, user: str, *, pinned: bool) -> None:
        if not reply.token_ids:
            return  # nothing was sampled: there is nothing to learn from, and nothing to vote on
        generation = reply.generation
        sampling = SamplingParameters(
            temperature=generation.sampling.temperature,
            top_p=generation.sampling.top_p,
            max_tokens=generation.sampling.max_tokens,
            stop=generation.sampling.stop,
        )
        if generation.sampling.seed is not None:
            sampling.seed = generation.sampling.seed
        interaction = Interaction(
            schema_version=1,
            response_id=generation.request_id,
            policy_version=generation.version.name,
            conversation_id=conversation_id,
            user=user,
            prompt_token_ids=generation.prompt_token_ids,
            reply_token_ids=reply.token_ids,
            behaviour_logprobs=reply.logprobs,
            sampling=sampling,
            finish_reason=reply.finish_reason,
            started_at=reply.started_at,
            pinned=pinned,
            traceparent=tracing.traceparent(),
        )
        interaction.finished_at.GetCurrentTime()
        # The reply itself is fine whatever happens here; the learner goes without it, and the operator is told.
        try:
            written = self._outbox.append(
                Record(INTERACTIONS, interaction.response_id, interaction.SerializeToString())
            )
        except (Refusal, ValueError) as error:
            self._lost(error)
        else:
            written.add_done_callback(lambda done: self._lost(done.exception()))

    def _lost(self, why: BaseException | None) -> None:
        """Count an interaction that is not learnt from, and say so, though not of each one; None: it was written."""
        if why is None:
            return
        self._metrics.interactions_lost.inc()
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _SILENT_SECONDS
            log.error("replies are served and not recorded (plaudit_interactions_lost_total counts them): %s", why)


def _delta(tokens: Tokens, with_logprobs: bool) -> StreamChatResponse:
    if with_logprobs:
        return StreamChatResponse(delta=Delta(text=tokens.text, token_ids=tokens.token_ids, logprobs=tokens.logprobs))
    return StreamChatResponse(delta=Delta(text=tokens.text))


class _Reply:
    """One reply while it is sampled: what was sampled, and the clock on it."""

    def __init__(self, generation: Generation, metrics: ServerMetrics, admitted_at: float) -> None:
        """admitted_at: by time.perf_counter."""
        self.generation = generation
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason: FinishReason.ValueType = FinishReason.FINISH_REASON_CANCELLED  # until the engine says more
        self.started_at = Timestamp()
        self.started_at.GetCurrentTime()
        self._metrics = metrics
        # Looked up once, not for each token.
        self._latency = metrics.inter_token_latency.labels(generation.version.name)
        self.admitted_at = self._last_at = admitted_at

    def add(self, tokens: Tokens) -> None:
        now = time.perf_counter()
        if not self.token_ids:
            first = self._metrics.time_to_first_token.labels(self.generation.version.name)
            first.observe(now - self.admitted_at)
        else:
            count = max(1, len(tokens.token_ids))
            for _ in range(count):
                self._latency.observe((now - self._last_at) / count)
        self._last_at = now
        self.token_ids.extend(tokens.token_ids)
        self.logprobs.extend(tokens.logprobs)
        if tokens.finish_reason is not None:
            self.finish_reason = _FINISH[tokens.finish_reason]

    def end(self) -> None:
        version: PolicyVersion = self.generation.version
        self._metrics.prompt_tokens.inc(len(self.generation.prompt_token_ids))
        self._metrics.generation_tokens.labels(version.name).inc(len(self.token_ids))
        self._metrics.e2e_request_latency.labels(version.name).observe(time.perf_counter() - self.admitted_at)
        self._metrics.requests.labels(version.name, self.reason).inc()

    @property
    def reason(self) -> str:
        """Why it ended, in a word."""
        return FinishReason.Name(self.finish_reason).removeprefix("FINISH_REASON_").lower()

    def tell(self, call: Call, engine: Span) -> None:
        """Note in the call how it ended; and in the engine's span, by the conventions for generative AI, which ends."""
        generation, sampling = self.generation, self.generation.sampling
        call.prompt_tokens, call.completion_tokens = len(generation.prompt_token_ids), len(self.token_ids)
        call.finish_reason = self.reason
        engine.set(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "plaudit",
                "gen_ai.request.model": generation.version.name,
                "gen_ai.request.max_tokens": sampling.max_tokens,
                "gen_ai.request.temperature": sampling.temperature,
                "gen_ai.request.top_p": sampling.top_p,
                "gen_ai.response.id": generation.request_id,
                "gen_ai.response.finish_reasons": [self.reason],
                "gen_ai.usage.input_tokens": call.prompt_tokens,
                "gen_ai.usage.output_tokens": call.completion_tokens,
            }
        )
        if self.finish_reason == FinishReason.FINISH_REASON_ERROR:
            engine.fail("EngineError")
        engine.end()
