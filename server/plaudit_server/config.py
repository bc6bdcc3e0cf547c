"""Settings of plaudit-server. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from plaudit.addresses import is_loopback
from plaudit.base_model import PACKAGED
from plaudit.settings import ASPECTS, ProgramSettings
from plaudit_server import sampling_bounds as bounds


class ServerSettings(ProgramSettings):
    """Serves a chat model over gRPC, takes feedback into the event log, follows the policy as it is learned."""

    model: str = PACKAGED
    """The base model: `smollm2` (packaged), or a directory in Hugging Face's format."""
    model_cache: Path = Path("~/.cache/plaudit")
    """Where the packaged model is kept once converted."""
    engine: Literal["auto", "vllm", "torch"] = "auto"
    """What samples tokens; auto: vLLM where it is installed, otherwise plain PyTorch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of weights and activations; auto: the model's own, but float32 on a CPU without bfloat16."""
    listen: str = "127.0.0.1:50051"
    """Address of chat and feedback; port 0: any free one (it is printed)."""
    control_listen: str = "127.0.0.1:51051"
    """Address of the control plane, operators' calls: policies, the loop, erasure; port 0: any free one."""
    callers_file: Path | None = None
    """Who may call, and what each may do: API keys and client certificates, written by `plaudit keys`; without it,
    whoever gets through to a port may do all that is there. Taken up within a second when it changes."""
    tls_certificate: Path | None = None
    """Certificate chain of both ports, PEM; renewed on disk, new connections get the new one."""
    tls_key: Path | None = None
    """Its unencrypted private key, PEM."""
    tls_client_ca: Path | None = None
    """CA certificates, PEM: only clients with a certificate signed by one of them are let in (mutual TLS)."""
    allow_insecure: bool = False
    """Listen beyond loopback without TLS, or without callers or client certificates: behind a proxy that has both."""
    max_connections: int = Field(default=1024, ge=1)
    """Connections open at once, at each address; one more is closed before it is read."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of Prometheus metrics; 0: none."""
    metrics_host: str = "127.0.0.1"
    """Address that metrics are served at, open to whoever reaches it; they name no user and hold no text."""
    access_log: bool = True
    """Log a line for each call that has ended: method, code, version, times, tokens, caller; never what was said."""
    event_log: str
    """sqlite:PATH or kafka://HOST:PORT[,HOST:PORT…], by TLS and with a password if it says so (docs/security.md); all
    programs of a deployment share it."""
    policy_store: str
    """Where versions are published: a directory or any fsspec URL (s3://…)."""
    state_dir: Path
    """This server's own directory: outbox and verified copies of versions. No two servers share one."""
    user_key_file: Path
    """At least 32 secret bytes; the same for all servers of a deployment, for good. Hashes user ids."""
    receipt_keys: Path
    """At least 32 secret bytes; the same for all servers of a deployment. Signs receipts. Or a directory of such files:
    the last by name signs, the others are accepted. Taken up within a second when it changes."""
    receipt_lifetime: float = Field(default=30 * 86400.0, gt=0)
    """Seconds during which a reply may be voted on."""
    aspects: list[str] = Field(default=[*ASPECTS], min_length=1)
    """What of a reply may be voted on; the first is meant when none is named."""
    max_context: int = Field(default=2048, ge=16)
    """Tokens of prompt and reply together."""
    max_tokens: int = Field(default=512, ge=1)
    """The longest reply that a request may ask for, in tokens."""
    default_max_tokens: int = Field(default=256, ge=1)
    """Length limit of a reply when the request does not say, in tokens."""
    default_temperature: Annotated[float, Field(ge=0, le=2), AfterValidator(bounds.temperature)] = 0.7
    """Temperature when the request does not say: 0 (greedy), or 0.01 to 2."""
    default_top_p: float = Field(default=1.0, gt=0, le=1)
    """top_p when the request does not say."""
    default_stop: list[
        Annotated[str, Field(min_length=1, max_length=bounds.MAX_STOP_BYTES), AfterValidator(bounds.stop)]
    ] = Field(default=[], max_length=bounds.MAX_STOPS)
    """Strings before which a reply ends when the request names none, as a JSON list: at most 8, of 1 to 64 bytes."""
    max_running: int = Field(default=16, ge=1)
    """Replies that are sampled at once."""
    max_waiting: int = Field(default=16, ge=0)
    """Requests that may wait for their turn; one more is refused with RESOURCE_EXHAUSTED."""
    max_requests_per_caller: int = Field(default=0, ge=0)
    """Requests that one caller (an API key or a client certificate) may have running and waiting; 0: no limit."""
    max_requests_per_user: int = Field(default=0, ge=0)
    """Requests that one user of a caller may have running and waiting; 0: no limit."""
    tokens_per_minute_per_caller: int = Field(default=0, ge=0)
    """Tokens of prompts and replies that one caller may use a minute; 0: no limit."""
    tokens_per_minute_per_user: int = Field(default=0, ge=0)
    """Tokens of prompts and replies that one user of a caller may use a minute; 0: no limit."""
    feedback_per_minute_per_caller: int = Field(default=0, ge=0)
    """Statements that one caller may make a minute; past it single ones are refused, streams slow down. 0: no limit."""
    max_feedback_streams: int = Field(default=64, ge=1)
    """StreamFeedback calls at once."""
    max_watchers: int = Field(default=64, ge=1)
    """WatchPolicies calls at once, and as many of WatchLoop."""
    max_calls: int = Field(default=2048, ge=1)
    """Calls of known callers open at once, at each address; health and reflection, which anybody may call, are not
    among them."""
    max_connection_age: float = Field(default=3600.0, ge=0)
    """Seconds after which a connection takes no new calls and its client makes another one, so that load spreads over
    servers that were added meanwhile; 0: never."""
    max_connection_age_grace: float = Field(default=600.0, gt=0)
    """Seconds that calls still running on such a connection have before they are cut; longer than any reply takes."""
    keepalive: float = Field(default=30.0, ge=1)
    """Seconds of silence after which a client is asked whether it is still there; it has a third of them to answer."""
    max_versions: int = Field(default=4, ge=2)
    """Adapters kept loaded at once: the stable one, the canary, the one before, and those whose streams still run."""
    max_lora_rank: Literal[8, 16, 32, 64] = 16
    """The largest adapter rank that can be served."""
    kv_cache_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """Memory for keys and values (vLLM)."""
    outbox_limit: int = Field(default=1_000_000, ge=1)
    """Records that the outbox holds while the event log is away; past it feedback is refused."""
    engine_restarts: int = Field(default=5, ge=0)
    """Attempts in a row to restart a dead engine in place; after them this process ends."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """How long running streams may take to finish after SIGTERM."""
    exit_with_parent: bool = False
    """Also stop when standard input ends (for supervisors)."""

    @model_validator(mode="after")
    def _check(self) -> ServerSettings:
        if self.default_max_tokens > self.max_tokens:
            raise ValueError(
                f"default-max-tokens ({self.default_max_tokens}) must not exceed max-tokens ({self.max_tokens})"
            )
        if self.max_tokens >= self.max_context:
            raise ValueError(f"max-tokens ({self.max_tokens}) must be below max-context ({self.max_context})")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls-certificate and tls-key belong together; give both, or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls-client-ca needs tls-certificate and tls-key: clients show certificates over TLS only")
        for name, address in (("listen", self.listen), ("control-listen", self.control_listen)):
            if not self.allow_insecure and not is_loopback(address):
                self._check_closed(name, address)
        return self

    def _check_closed(self, name: str, address: str) -> None:
        missing = []
        if self.tls_certificate is None:
            missing.append("tls-certificate and tls-key")
        if self.callers_file is None and self.tls_client_ca is None:
            missing.append("callers-file or tls-client-ca")
        if missing:
            raise ValueError(
                f"{name} ({address}) can be reached from other machines; give {' and '.join(missing)}, "
                "listen on 127.0.0.1, or say --allow-insecure"
            )
