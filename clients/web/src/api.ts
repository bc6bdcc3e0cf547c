// The gateway's HTTP API, as far as the page uses it. Every function throws Problem, or AbortError if it was aborted.

import type { Loop } from "./loop/data.ts";
import { asProblem, kindOf, kindOfError, messageOf, Problem } from "./problem.ts";
import { events } from "./sse.ts";

export type Message = { role: "user" | "assistant"; content: string };

export type ChatRequest = {
  messages: Message[];
  /** "plaudit": the router chooses; or a version. */
  model: string;
  user: string;
  conversation_id: string;
  /** A server may have a fixed one; another reply is to be another. */
  seed: number;
  unrecorded?: boolean;
};

export type ChatEvent =
  | { type: "started"; id: string; version: string; receipt: string }
  | { type: "text"; text: string }
  | { type: "finished"; reason: string };

/** One statement for POST /v1/feedback, or its retraction. */
export type Statement = {
  receipt: string;
  aspect?: string;
  thumb?: "up" | "down";
  preferred_over?: string;
  comment?: string;
  retract?: true;
};

export type Page = { aspects: string[]; loop: boolean };

const root = "v1";

async function call(path: string, key: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  if (init.body) headers.set("Content-Type", "application/json");
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers, credentials: "omit", cache: "no-store" });
  } catch (thrown) {
    if (init.signal?.aborted) throw thrown;
    throw asProblem(thrown);
  }
  if (response.ok) return response;
  const body: unknown = await response.json().catch(() => null);
  const wait = Number(response.headers.get("Retry-After") ?? 0);
  throw new Problem(
    kindOf(response.status),
    messageOf(body, `HTTP ${response.status} ${response.statusText}`.trim()),
    Number.isFinite(wait) ? wait : 0,
  );
}

/** Whether the server behind the gateway serves. Never throws. */
export async function healthy(): Promise<boolean> {
  try {
    const response = await fetch("healthz", {
      credentials: "omit",
      cache: "no-store",
      signal: AbortSignal.timeout(5000),
    });
    return response.ok;
  } catch {
    return false;
  }
}

export async function page(key: string): Promise<Page> {
  return (await (await call(`${root}/page`, key)).json()) as Page;
}

/** Streams one reply. Without `finished` at the end it broke off, which throws too. */
export async function* chat(request: ChatRequest, key: string, signal: AbortSignal): AsyncGenerator<ChatEvent> {
  const body = JSON.stringify({ ...request, stream: true });
  const response = await call(`${root}/chat/completions`, key, { method: "POST", body, signal });
  let started = false;
  let finished = false;
  for await (const data of read(response, signal)) {
    if (data === "[DONE]") break;
    for (const event of chatEvents(JSON.parse(data))) {
      if (event.type === "started") {
        if (started) continue;
        started = true;
      }
      if (event.type === "finished") finished = true;
      yield event;
    }
  }
  if (!finished) throw new Problem("unreachable", "");
}

async function* read(response: Response, signal: AbortSignal): AsyncGenerator<string> {
  if (!response.body) throw new Problem("failed", "the answer has no body");
  try {
    yield* events(response.body);
  } catch (thrown) {
    if (signal.aborted) throw thrown;
    throw asProblem(thrown);
  }
}

/** What one chunk of a streamed completion says. Throws Problem if it says that the stream failed. */
export function chatEvents(chunk: unknown): ChatEvent[] {
  const { error, id, model, plaudit, choices } = chunk as {
    error?: { type?: string; code?: string };
    id?: string;
    model?: string;
    plaudit?: { receipt?: string; policy_version?: string };
    choices?: { delta?: { content?: string | null }; finish_reason?: string | null }[];
  };
  if (error) throw new Problem(kindOfError(error), messageOf(chunk, ""));
  const out: ChatEvent[] = [];
  if (plaudit) {
    out.push({
      type: "started",
      id: id ?? "",
      version: plaudit.policy_version ?? model ?? "",
      receipt: plaudit.receipt ?? "",
    });
  }
  const choice = choices?.[0];
  if (choice?.delta?.content) out.push({ type: "text", text: choice.delta.content });
  if (choice?.finish_reason) out.push({ type: "finished", reason: choice.finish_reason });
  return out;
}

export async function feedback(
  statement: Statement,
  user: string,
  idempotencyKey: string,
  key: string,
): Promise<"event_log" | "outbox"> {
  const body = JSON.stringify({ ...statement, user, idempotency_key: idempotencyKey });
  const response = await call(`${root}/feedback`, key, { method: "POST", body, signal: AbortSignal.timeout(20_000) });
  return ((await response.json()) as { durability: "event_log" | "outbox" }).durability;
}

/** The versions that can be asked for by name. */
export async function versions(key: string): Promise<string[]> {
  const { data } = (await (await call(`${root}/models`, key)).json()) as { data: { id: string }[] };
  return data.map(({ id }) => id).filter((id) => /^v\d+$/.test(id));
}

/** The loop now, and again whenever it changes; ends when the server ends it. */
export async function* watchLoop(key: string, signal: AbortSignal): AsyncGenerator<Loop> {
  const response = await call(`${root}/loop/events`, key, { signal });
  for await (const data of read(response, signal)) {
    const said = JSON.parse(data) as Loop & { error?: { type?: string; code?: string } };
    if (said.error) throw new Problem(kindOfError(said.error), messageOf(said, ""));
    yield said;
  }
}

export type Step = { action: "promote" | "rollback"; version: string; reason: string };

export async function step({ action, version, reason }: Step, key: string): Promise<void> {
  const path = `${root}/policies/${encodeURIComponent(version)}/${action}`;
  await call(path, key, { method: "POST", body: JSON.stringify({ reason }) });
}
