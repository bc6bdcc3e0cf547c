"""OpenAI's request for a chat completion, as far as Plaudit can do what it asks for.

Every field of OpenAI's is known here: those that are honoured; those that change no reply, which are taken; and those
that would, which are taken only where they ask for what is done anyway (`n` = 1, no tools, …). Ranges that are the
servers' own to judge are judged there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plaudit_client import Message
from plaudit_gateway.errors import UNSUPPORTED, Wrong

OWN_MODEL = "plaudit"
"""The model that the router chooses a version of."""

Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Strict(BaseModel):
    """Takes no unknown field, and no value that would have to be converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """One turn. Parts of a text are joined by line breaks."""

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` means `system`."""
    content: Annotated[str, Field(min_length=1)] | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    """Taken, and not used."""
    # What an answer's message has beside them, so that it can be sent back as it came.
    refusal: None = None
    annotations: Nothing | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None

    def message(self) -> Message:
        """As the SDK takes it."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(Strict):
    """Of a streamed answer."""

    include_usage: bool | None = None
    """Whether one more chunk, the last, has the usage."""
    include_obfuscation: bool | None = None
    """Taken, and not used."""


class TextFormat(Strict):
    """The only format."""

    type: Literal["text"]


class ChatCompletionRequest(Strict):
    """A conversation, and how to sample the reply to it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": OWN_MODEL,
                "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                "max_completion_tokens": 64,
                "user": "ann",
            }
        }
    )

    model: Annotated[str, Field(min_length=1)]
    """`plaudit`: the version that the router chooses; or a version, for instance `v3`."""
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    """At most one system message, first; then user and assistant in turn, beginning and ending with the user."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 (greedy), or 0.01 to 2."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    """The older name of `max_completion_tokens`."""
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    """At most what the server's configuration allows."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(max_length=8)] | None = None
    """Each of 1 to 64 bytes."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    """Of the sampled tokens, under the distribution really sampled from."""
    user: str | None = None
    """Who asks, at most 256 bytes: Plaudit's `user_id`."""
    conversation_id: str | None = None
    """Plaudit's: replies of one conversation come from the same side of a canary."""
    unrecorded: bool | None = None
    """Plaudit's: nothing is learnt from the reply, and it cannot be voted on."""

    # Of no consequence for a reply.
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    # Taken where they ask for nothing.
    audio: None = None
    frequency_penalty: Zero | None = None
    function_call: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    moderation: None = None
    modalities: list[Literal["text"]] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    prediction: None = None
    presence_penalty: Zero | None = None
    reasoning_effort: Literal["none"] | None = None
    response_format: TextFormat | None = None
    store: Literal[False] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: Nothing | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None

    def policy_version(self) -> str:
        """The version that is asked for; empty: the router chooses. Raises Wrong 404."""
        if self.model == OWN_MODEL:
            return ""
        if self.model[:1] == "v" and self.model[1:].isdecimal() and self.model.isascii() and len(self.model) <= 32:
            return self.model
        raise no_model(self.model)

    def length(self) -> int | None:
        """The most tokens. Raises Wrong 400."""
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise Wrong(
                400,
                "max_tokens is the older name of max_completion_tokens; give one of them",
                code="invalid_value",
                param="max_tokens",
            )
        return self.max_completion_tokens or self.max_tokens

    def names(self) -> dict[str, str]:
        """What this request calls the servers' fields, by theirs."""
        return {
            "sampling.temperature": "temperature",
            "sampling.top_p": "top_p",
            "sampling.max_tokens": "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens",
            "sampling.seed": "seed",
            "sampling.stop": "stop",
            "user_id": "user",
            "policy_version": "model",
        }


def no_model(name: str) -> Wrong:
    """404, as OpenAI has it."""
    message = f"the model {name[:64]!r} is not served here; give {OWN_MODEL!r}, or a version such as 'v3'"
    return Wrong(404, message, code="model_not_found", param="model")


_FIELDS = list(ChatCompletionRequest.model_fields)
UNSUPPORTED.update(_FIELDS[_FIELDS.index("audio") :])
