// Two tabs of one browser, and a browser that keeps nothing. A tab is the page's modules, loaded once more.

import { afterEach, beforeEach, expect, test, vi } from "vitest";

type Listener = (event: object) => void;

const storage = {
  getItem(this: Record<string, string>, name: string): string | null {
    return this[name] ?? null;
  },
  setItem(this: Record<string, string>, name: string, value: string): void {
    this[name] = value;
  },
  removeItem(this: Record<string, string>, name: string): void {
    delete this[name];
  },
};

let kept: Record<string, string>;

beforeEach(() => {
  vi.useFakeTimers();
  kept = Object.create(storage);
  vi.stubGlobal("localStorage", kept);
  vi.stubGlobal("sessionStorage", Object.create(storage));
});

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

async function open() {
  const listeners: [string, Listener][] = [];
  vi.stubGlobal("addEventListener", (type: string, listener: Listener) => listeners.push([type, listener]));
  vi.resetModules();
  const conversations = await import("../src/chat/conversations.ts");
  const talk = await import("../src/chat/talk.ts");
  const model = await import("../src/chat/model.ts");
  const votes = await import("../src/chat/votes.ts");
  conversations.startConversations();
  const fire = (type: string, event: object) => {
    for (const [its, listener] of listeners) if (its === type) listener(event);
  };
  return {
    ...talk,
    ...conversations,
    ...model,
    ...votes,
    /** Another tab wrote or removed it. */
    hear: (name: string) => fire("storage", { storageArea: kept, key: `plaudit.${name}` }),
    leave: () => fire("pagehide", {}),
    reply: (id: string) => {
      const reply = conversations.conversation(id)?.turns.at(-1)?.replies.at(-1);
      return [reply?.state, reply?.text];
    },
  };
}

/** The server's next reply, said by the test. */
function reply() {
  const encoder = new TextEncoder();
  let stream: ReadableStreamDefaultController<Uint8Array> | undefined;
  const send = (data: string) => stream?.enqueue(encoder.encode(`data: ${data}\n\n`));
  const choice = (said: object) => send(JSON.stringify({ choices: [said] }));
  vi.stubGlobal("fetch", async (_: string, { signal }: { signal: AbortSignal }) => {
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        stream = controller;
        signal.addEventListener("abort", () => controller.error(signal.reason));
      },
    });
    send(JSON.stringify({ model: "v0", plaudit: { receipt: "R", policy_version: "v0" }, choices: [{ delta: {} }] }));
    return new Response(body);
  });
  return {
    async say(text: string) {
      choice({ delta: { content: text } });
      await vi.advanceTimersByTimeAsync(1000);
    },
    async end() {
      choice({ delta: {}, finish_reason: "stop" });
      send("[DONE]");
      stream?.close();
      await vi.advanceTimersByTimeAsync(1000);
    },
  };
}

/** A reply streams in `one`; `other` sees its beginning. */
async function twoTabs() {
  const one = await open();
  const other = await open();
  const server = reply();
  const id = one.send(null, "Hello");
  const name = `conversation.${id}`;
  await server.say("Good ");
  other.hear(name);
  expect(other.reply(id)).toEqual(["streaming", "Good "]);
  const stored = () => JSON.parse(kept[`plaudit.${name}`] ?? "null");
  return { one, other, server, id, name, stored };
}

test("a reply that streams in another tab is shown to its end", async () => {
  const { other, server, id, name } = await twoTabs();
  await server.say("day");
  other.hear(name);
  expect(other.reply(id)).toEqual(["streaming", "Good day"]);
  await server.end();
  other.hear(name);
  expect(other.reply(id)).toEqual(["done", "Good day"]);
});

test("what is written meanwhile in another tab stays, and so does the reply", async () => {
  const { one, other, server, id, name, stored } = await twoTabs();
  other.update(id, (before) => ({ ...before, draft: "And" }));
  await server.say("day");
  expect(stored().turns[0].replies[0].text).toBe("Good day");
  other.hear(name);
  await server.end();
  other.hear(name);
  expect([other.conversation(id)?.draft, other.reply(id)]).toEqual(["And", ["done", "Good day"]]);
  await vi.advanceTimersByTimeAsync(1000);
  expect([stored().draft, stored().turns[0].replies[0].text]).toEqual(["And", "Good day"]);
  one.hear(name);
  expect([one.conversation(id)?.draft, one.reply(id)]).toEqual(["And", ["done", "Good day"]]);
});

test("a tab that writes on a late copy of a reply leaves the whole one as it is kept", async () => {
  const { other, server, id, stored } = await twoTabs();
  await server.say("day");
  await server.end();
  other.update(id, (before) => ({ ...before, draft: "And" })); // it has not heard of the end
  await vi.advanceTimersByTimeAsync(1000);
  expect(stored().turns[0].replies[0]).toMatchObject({ state: "done", text: "Good day" });
});

test("a reply is stopped from another tab", async () => {
  const { one, other, id, name } = await twoTabs();
  other.stop(id);
  expect(other.reply(id)).toEqual(["stopped", "Good "]);
  one.hear(`stop.${id}`);
  await vi.advanceTimersByTimeAsync(1000);
  other.hear(name);
  expect([one.reply(id), other.reply(id)]).toEqual([
    ["stopped", "Good "],
    ["stopped", "Good "],
  ]);
  expect(one.running.size).toBe(0);
});

test("a conversation whose reply streams in another tab is deleted for good", async () => {
  const { one, other, id, name, stored } = await twoTabs();
  other.stop(id);
  other.forget(id);
  one.hear(`stop.${id}`);
  await vi.advanceTimersByTimeAsync(1000);
  other.hear(name);
  one.hear(`forget.${id}`);
  one.hear(name);
  await vi.advanceTimersByTimeAsync(1000);
  other.hear(name);
  expect([one.conversation(id), other.conversation(id), stored()]).toEqual([undefined, undefined, null]);
  expect(one.running.size).toBe(0);
});

test("a tab that goes ends its reply for the others", async () => {
  const { one, other, id, name, stored } = await twoTabs();
  one.leave();
  expect(stored().turns[0].replies[0].state).toBe("stopped");
  other.hear(name);
  expect(other.reply(id)).toEqual(["stopped", "Good "]);
});

test("a vote that the browser cannot keep is sent all the same", async () => {
  const full = () => {
    throw new Error("QuotaExceededError");
  };
  vi.stubGlobal("localStorage", Object.assign(Object.create(storage), { setItem: full }));
  const sent: unknown[] = [];
  let away = true;
  vi.stubGlobal("fetch", async (_: string, { body }: { body: string }) => {
    if (away) throw new TypeError("fetch failed");
    sent.push(JSON.parse(body));
    return Response.json({ durability: "event_log" });
  });
  const tab = await open();
  const reply = { ...tab.newReply("r"), text: "Hi!", receipt: "R", state: "done" as const };
  tab.put(tab.say(tab.newConversation("c", 0), "t", "Hello", reply, 1));
  const { pressed } = await import("../src/chat/opinions.ts");
  tab.think("c", "r", (before) => pressed(before, "up"));
  await tab.outbox.flush();
  expect(tab.outbox.waiting.value.length).toBe(1);
  away = false;
  await tab.outbox.flush();
  expect(sent).toMatchObject([{ receipt: "R", thumb: "up" }]);
  expect(tab.outbox.waiting.value).toEqual([]);
});
