import { afterEach, expect, test, vi } from "vitest";
import { type ChatEvent, chat, chatEvents, feedback } from "../src/api.ts";
import { Problem } from "../src/problem.ts";
import { events } from "../src/sse.ts";

function body(...pieces: (string | Uint8Array)[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (const piece of pieces)
        controller.enqueue(typeof piece === "string" ? new TextEncoder().encode(piece) : piece);
      controller.close();
    },
  });
}

async function all<T>(source: AsyncIterable<T>): Promise<T[]> {
  const out: T[] = [];
  for await (const one of source) out.push(one);
  return out;
}

const REQUEST = { model: "plaudit", messages: [], user: "u", conversation_id: "c", seed: 1 };
const started = 'data: {"id":"r","model":"v3","plaudit":{"receipt":"x","policy_version":"v3"},"choices":[]}\n\n';
const text = (content: string) => `data: ${JSON.stringify({ choices: [{ delta: { content } }] })}\n\n`;
const finished = 'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n';

function answer(...pieces: string[]) {
  vi.stubGlobal(
    "fetch",
    async () => new Response(body(...pieces), { headers: { "Content-Type": "text/event-stream" } }),
  );
}

function ask(): Promise<ChatEvent[]> {
  return all(chat(REQUEST, "", new AbortController().signal));
}

afterEach(() => vi.unstubAllGlobals());

test("events are found wherever the pieces end, even within a character", async () => {
  const bytes = new TextEncoder().encode("data: 你好\n\n: keep-alive\n\ndata: two\r\n\r\n");
  for (let cut = 0; cut <= bytes.length; cut++) {
    expect(await all(events(body(bytes.slice(0, cut), bytes.slice(cut))))).toEqual(["你好", "two"]);
  }
});

test("whoever stops reading cancels the body", async () => {
  let cancelled = false;
  const source = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: 1\n\n")),
    cancel: () => {
      cancelled = true;
    },
  });
  for await (const _ of events(source)) break;
  expect(cancelled).toBe(true);
});

test("a reply is its beginning, its pieces and its end", async () => {
  answer(started, text("Hel"), text("lo"), finished, "data: [DONE]\n\n");
  expect(await ask()).toEqual([
    { type: "started", id: "r", version: "v3", receipt: "x" },
    { type: "text", text: "Hel" },
    { type: "text", text: "lo" },
    { type: "finished", reason: "stop" },
  ]);
});

test("an unrecorded reply has no receipt", () => {
  const chunk = { id: "r", model: "v3", plaudit: { receipt: null, policy_version: "v3" }, choices: [] };
  expect(chatEvents(chunk)).toEqual([{ type: "started", id: "r", version: "v3", receipt: "" }]);
});

test("a stream that ends before the reply does is no whole reply", async () => {
  answer(started, text("Hel"));
  await expect(ask()).rejects.toMatchObject({ kind: "unreachable" });
});

test.each([
  [{ type: "server_error", code: "unavailable" }, "unreachable"],
  [{ type: "rate_limit_error", code: "rate_limit_exceeded" }, "busy"],
  [{ type: "invalid_request_error", code: "permission_denied" }, "key"],
  [{ type: "invalid_request_error", code: "invalid_value" }, "refused"],
  [{ type: "server_error", code: "internal" }, "failed"],
])("an error in the middle of a stream: %j is %s", async (error, kind) => {
  answer(started, `data: ${JSON.stringify({ error: { ...error, message: "why" } })}\n\n`);
  await expect(ask()).rejects.toMatchObject({ kind, message: "why" });
});

test.each([
  [400, "refused", false],
  [401, "key", true],
  [403, "key", true],
  [404, "absent", true],
  [408, "unreachable", true],
  [422, "refused", false],
  [429, "busy", true],
  [500, "failed", true],
  [503, "unreachable", true],
])("a vote answered with %i: %s", async (status, kind, passing) => {
  const answered = { status, headers: { "Retry-After": "7" } };
  vi.stubGlobal("fetch", async () => new Response('{"error":{"message":"why"}}', answered));
  const problem = await feedback({ receipt: "x", thumb: "up" }, "u", "k", "").catch((thrown: unknown) => thrown);
  expect(problem).toBeInstanceOf(Problem);
  expect(problem).toMatchObject({ kind, passing, message: "why", retryAfter: 7 });
});

test("an answer that is no JSON is still a problem in words", async () => {
  vi.stubGlobal("fetch", async () => new Response("<html>", { status: 502, statusText: "Bad Gateway" }));
  await expect(ask()).rejects.toMatchObject({ kind: "unreachable", message: "HTTP 502 Bad Gateway" });
});

test("the key goes into the header, and nowhere else", async () => {
  const fetched = vi.fn(async (_path: string, _init: RequestInit) => Response.json({ durability: "outbox" }));
  vi.stubGlobal("fetch", fetched);
  expect(await feedback({ receipt: "x", thumb: "up" }, "u", "k", "secret")).toBe("outbox");
  const [path, init] = fetched.mock.calls[0] ?? ["", {}];
  expect(new Headers(init.headers).get("Authorization")).toBe("Bearer secret");
  expect(path + String(init.body)).not.toContain("secret");
});
