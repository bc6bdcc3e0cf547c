// Sends what a person says, and puts the reply together as it streams.

import { signal } from "@preact/signals";
import * as api from "../api.ts";
import { found, keyWanted, lost } from "../connection.ts";
import { apiKey, userId } from "../preferences.ts";
import { asProblem } from "../problem.ts";
import { randomId, randomSeed } from "../storage.ts";
import { conversation, put, running, stopElsewhere, update } from "./conversations.ts";
import {
  again,
  type Conversation,
  messages,
  newConversation,
  newReply,
  type Reply,
  replyOf,
  say,
  streamingReply,
  unsay,
  withReply,
} from "./model.ts";

/** What has just happened, for a screen reader: whole replies, not every token. */
export const spoken = signal<{ what: "replying" | "reply" | "stopped" | "failed"; text: string } | null>(null);

/** Returns the conversation's id: a new one, if it was null. */
export function send(conversationId: string | null, text: string): string {
  const now = Date.now();
  const before = (conversationId && conversation(conversationId)) || newConversation(randomId(), now);
  if (streamingReply(before)) return before.id;
  const reply = newReply(randomId());
  put(say(before, randomId(), text, reply, now));
  void stream(before.id, reply.id);
  return before.id;
}

/** Another reply to the last turn. */
export function regenerate(conversationId: string): void {
  const before = conversation(conversationId);
  if (!before || before.turns.length === 0 || streamingReply(before)) return;
  const reply = newReply(randomId());
  put(again(before, reply, Date.now()));
  void stream(conversationId, reply.id);
}

/** Put the last turn's words back where they were written. */
export function edit(conversationId: string): void {
  update(conversationId, (before) => (streamingReply(before) ? before : unsay(before)));
}

/** The server frees the reply's place at once. What has been said stays. */
export function stop(conversationId: string): void {
  const here = running.get(conversationId);
  if (here) here.abort();
  else stopElsewhere(conversationId);
}

async function stream(conversationId: string, replyId: string): Promise<void> {
  const controller = new AbortController();
  running.set(conversationId, controller);
  spoken.value = { what: "replying", text: "" };
  const change = (how: (reply: Reply) => Reply) =>
    update(conversationId, (now: Conversation) => withReply(now, replyId, how));
  // Tokens may come faster than the screen is drawn.
  let text = "";
  let frame: ReturnType<typeof setTimeout> | undefined;
  const draw = () => {
    clearTimeout(frame);
    frame = undefined;
    const whole = text;
    change((reply) => (reply.text === whole ? reply : { ...reply, text: whole }));
  };
  try {
    const before = conversation(conversationId);
    if (!before) return;
    const request: api.ChatRequest = {
      model: "plaudit",
      messages: messages(before),
      user: userId.value,
      conversation_id: conversationId,
      seed: randomSeed(),
    };
    let finish = "";
    for await (const event of api.chat(request, apiKey.value, controller.signal)) {
      if (event.type === "started") {
        found();
        change((reply) => ({ ...reply, version: event.version, receipt: event.receipt }));
      } else if (event.type === "text") {
        text += event.text;
        frame ??= setTimeout(draw, 33);
      } else finish = event.reason;
    }
    draw();
    change((reply) => ({ ...reply, state: "done", finish }));
    spoken.value = { what: "reply", text };
  } catch (thrown) {
    draw();
    if (controller.signal.aborted) {
      change((reply) => ({ ...reply, state: "stopped" }));
      spoken.value = { what: "stopped", text };
      return;
    }
    const problem = asProblem(thrown);
    if (problem.kind === "unreachable") lost();
    if (problem.kind === "key") keyWanted.value = true;
    change((reply) => ({ ...reply, state: "failed", problem: { kind: problem.kind, message: problem.message } }));
    spoken.value = { what: "failed", text: problem.message };
  } finally {
    clearTimeout(frame);
    running.delete(conversationId);
    settleComparison(conversationId, replyId);
  }
}

/** A second reply of which nothing came cannot be compared: the first one stands again. */
function settleComparison(conversationId: string, replyId: string): void {
  const now = conversation(conversationId);
  const turn = now?.turns.at(-1);
  if (!now || !turn?.comparing?.includes(replyId)) return;
  const reply = replyOf(now, replyId);
  if (reply && !reply.text && reply.state === "stopped") {
    const [first] = turn.comparing;
    update(conversationId, (before) => ({
      ...before,
      turns: before.turns.map((its) =>
        its.id === turn.id
          ? { ...its, chosen: first, comparing: null, replies: its.replies.filter(({ id }) => id !== replyId) }
          : its,
      ),
    }));
  } else if (reply?.state === "failed") {
    // Both stay in sight, and nothing is asked: half a reply is no fair comparison.
    update(conversationId, (before) => ({
      ...before,
      turns: before.turns.map((its) => (its.id === turn.id ? { ...its, comparing: null } : its)),
    }));
  }
}
