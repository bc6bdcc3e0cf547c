"""The routes, and the OpenAPI document that says so."""

import asyncio
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

import plaudit
from plaudit_client import AsyncClient, PlauditError
from plaudit_gateway import chat, errors, feedback, loop, page, versions
from plaudit_gateway.chat_request import ChatCompletionRequest
from plaudit_gateway.config import GatewaySettings
from plaudit_gateway.edge import Edge
from plaudit_gateway.metrics import GatewayMetrics

_FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": errors.ErrorBody, "description": "The request is refused, in words."},
    "5XX": {"model": errors.ErrorBody, "description": "The servers, or this gateway, cannot do it now."},
}
_STREAMED = {"schema": {"type": "string", "description": "Chunks of OpenAI's kind; the first has `plaudit`, too."}}

_PICTURES = {"schema": {"type": "string", "description": "What /v1/loop answers, as one `data:` each."}}


def api_key(request: Request) -> str:
    """The caller's; empty: none. Raises Wrong 401."""
    said = request.headers.get("authorization", "")
    scheme, _, key = said.partition(" ")
    if said and scheme.lower() != "bearer":
        raise errors.Wrong(401, "the API key must be sent as `Authorization: Bearer KEY`", code="invalid_api_key")
    return key.strip()


def build(
    settings: GatewaySettings,
    client: AsyncClient,
    metrics: GatewayMetrics,
    stopping: asyncio.Event,
    observe_key: str = "",
) -> FastAPI:
    """The application; `client` is shared by all requests, each with its own key.

    `stopping` ends streams that have no end; `observe_key` is shown for those who read the loop without a key.
    """

    async def as_caller(request: Request) -> AsyncClient:  # else FastAPI would ask a thread
        try:
            return client.with_api_key(api_key(request))
        except PlauditError as error:
            raise errors.from_client(error, {}) from None

    Caller = Annotated[AsyncClient, Depends(as_caller)]  # noqa: N806 - a type
    controlled = settings.control is not None
    app = FastAPI(
        title="Plaudit",
        version=plaudit.__version__,
        description="A chat model that learns from votes: OpenAI's chat API, and votes on its replies.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_FAILURES,
        dependencies=[Depends(HTTPBearer(auto_error=False, scheme_name="key", description="An API key."))],
    )
    for kind, handler in (
        (errors.Wrong, errors.on_wrong),
        (HTTPException, errors.on_http),
        (RequestValidationError, errors.on_invalid),
    ):
        app.add_exception_handler(kind, handler)

    @app.post(
        "/v1/chat/completions",
        responses={200: {"model": chat.ChatCompletion, "content": {"text/event-stream": _STREAMED}}},
    )
    async def chat_completions(request: Request, body: ChatCompletionRequest, caller: Caller) -> Response:
        """One reply to a conversation; with `stream`, as it is sampled. A caller that leaves ends it."""
        return await chat.complete(request, body, caller, metrics)

    @app.get("/v1/models", responses={200: {"model": versions.Models}})
    async def list_models(caller: Caller) -> Response:
        """`plaudit`, and the versions that may be asked for by name, as far as the caller may know them."""
        return JSONResponse({"object": "list", "data": await versions.models(caller, controlled=controlled)})

    @app.get("/v1/models/{name}", responses={200: {"model": versions.Model}})
    async def get_model(name: str, caller: Caller) -> Response:
        """One of them."""
        return JSONResponse(await versions.model(name, caller, controlled=controlled))

    @app.post("/v1/feedback", responses={200: {"model": feedback.FeedbackAnswer}})
    async def submit_feedback(body: feedback.Feedback, caller: Caller) -> Response:
        """Say one thing of one reply, or take it back. The answer means that it is durable."""
        return JSONResponse(await feedback.submit(body, caller))

    async def operators(request: Request) -> AsyncClient:
        if not controlled:
            message = "this gateway knows no control plane; start it with --control HOST:PORT"
            raise errors.Wrong(404, message, code="no_control")
        return await as_caller(request)

    async def observers(request: Request) -> AsyncClient:
        caller = await operators(request)
        return caller if api_key(request) or not observe_key else client.with_api_key(observe_key)

    Operator = Annotated[AsyncClient, Depends(operators)]  # noqa: N806 - a type
    Observer = Annotated[AsyncClient, Depends(observers)]  # noqa: N806 - a type
    policy: dict[int | str, dict[str, Any]] = {200: {"model": versions.PolicyAnswer}}

    @app.post("/v1/policies/{version}/promote", responses=policy)
    async def promote_policy(version: str, body: versions.Reason, caller: Operator) -> Response:
        """Make a version the stable one, on all servers."""
        return JSONResponse(await versions.promote(version, body, caller))

    @app.post("/v1/policies/{version}/rollback", responses=policy)
    async def rollback_policy(version: str, body: versions.Reason, caller: Operator) -> Response:
        """Take a version out of service, on all servers."""
        return JSONResponse(await versions.roll_back(version, body, caller))

    @app.post("/v1/policies/{version}/share", responses=policy)
    async def share_policy(version: str, body: versions.Share, caller: Operator) -> Response:
        """Give a version a share of conversations: it becomes the canary."""
        return JSONResponse(await versions.set_share(version, body, caller))

    @app.get("/v1/loop", responses={200: {"model": loop.Picture}})
    async def get_loop(caller: Observer) -> Response:
        """How learning goes, and the versions that came of it."""
        return JSONResponse(await loop.now(caller))

    @app.get("/v1/loop/events", responses={200: {"content": {"text/event-stream": _PICTURES}}}, response_class=Response)
    async def watch_loop(request: Request, caller: Observer) -> Response:
        """What /v1/loop answers, now and whenever it changes; without end."""
        return await loop.events(request, caller, stopping)

    @app.get("/v1/page", responses={200: {"model": page.About}})
    async def about() -> Response:
        """What the web page has to know of this deployment; needs no key."""
        return JSONResponse(page.About(aspects=settings.aspects, loop=controlled).model_dump())

    looking: asyncio.Task[bool] | None = None

    @app.get("/healthz", responses={200: {"description": "The servers serve chats."}})
    async def healthz() -> dict[str, str]:
        """Whether a chat would be answered now."""
        nonlocal looking
        if looking is None or looking.done():  # however many ask, servers are asked once: they take few such calls
            looking = asyncio.create_task(client.healthy())
            looking.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may have left
        try:
            serves = await asyncio.shield(looking)
        except PlauditError as error:
            raise errors.Wrong(503, errors.told(error), code="unavailable") from None
        if not serves:
            raise errors.Wrong(503, "the server does not serve yet, or is going down", code="unavailable")
        return {"status": "serving"}

    page.serve(app)
    if settings.allow_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origin,
            allow_methods=["GET", "POST"],
            # OpenAI's client for browsers sends X-Stainless-… of its own. There are no cookies to guard: to send a key,
            # a page must know it.
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", "Retry-After-Ms"],
        )
    app.add_middleware(Edge, settings=settings, metrics=metrics)
    _tell_the_truth(app)
    return app


def _tell_the_truth(app: FastAPI) -> None:
    """FastAPI documents a 422, which on_invalid never answers; and a key is only needed where servers ask for one."""
    document = app.openapi()
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["security"] = [{}, *operation["security"]]
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
