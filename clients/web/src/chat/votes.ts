// Votes: what a person thinks of a reply changes at once, and the statements that say so to the server follow.

import * as api from "../api.ts";
import { found, keyWanted, lost, onReturn } from "../connection.ts";
import { apiKey, userId } from "../preferences.ts";
import type { Problem } from "../problem.ts";
import { load, names, onOtherTab, randomId, remove, save } from "../storage.ts";
import { conversation, update } from "./conversations.ts";
import { decided, replyOf, withReply, withTurn } from "./model.ts";
import { type Opinions, opinion, statements, withOpinion, withoutSaid } from "./opinions.ts";
import { type Entry, Outbox } from "./outbox.ts";

const PREFIX = "outbox.";
const RETRY = 5; // seconds, if the server does not say

/** What the browser does not keep waits here: it is sent like the rest, but lost with the page. */
const unkept = new Map<string, Entry>();
let last = 0;
let timer: ReturnType<typeof setTimeout> | undefined;

export const outbox = new Outbox(
  {
    list: () =>
      [...names(PREFIX).flatMap((name) => load<Entry | null>(name, null) ?? []), ...unkept.values()].sort((a, b) =>
        a.key < b.key ? -1 : 1,
      ),
    add: (entry) => {
      if (!save(PREFIX + entry.key, entry)) unkept.set(entry.key, entry);
    },
    remove: (key) => {
      unkept.delete(key);
      remove(PREFIX + key);
    },
  },
  async (entry) => {
    await api.feedback(entry.statement, userId.value, entry.key, apiKey.value);
    found();
  },
  refuse,
  hold,
);

/** What a person now thinks of a reply. */
export function think(conversationId: string, replyId: string, change: (before: Opinions) => Opinions): void {
  const before = conversation(conversationId);
  const reply = before && replyOf(before, replyId);
  if (!reply?.receipt) return;
  const after = change(reply.opinions);
  update(conversationId, (now) => withReply(now, replyId, (its) => ({ ...its, opinions: after, refused: "" })));
  queue(conversationId, replyId, statements(reply.receipt, reply.opinions, after));
}

/** The person says which of the compared replies was better; null: they cannot say. */
export function prefer(conversationId: string, turnId: string, better: string | null): void {
  const turn = conversation(conversationId)?.turns.find(({ id }) => id === turnId);
  if (!turn?.comparing) return;
  const [first, second] = turn.comparing;
  update(conversationId, (now) =>
    withTurn(now, turnId, (before) => decided(before, better ?? second, better !== null)),
  );
  const receiptOf = (id: string) => turn.replies.find((reply) => reply.id === id)?.receipt ?? "";
  const receipts = { [first]: receiptOf(first), [second]: receiptOf(second) };
  if (!receipts[first] || !receipts[second]) return;
  for (const [mine, other] of [
    [first, second],
    [second, first],
  ] as const) {
    const over = receipts[other] as string;
    think(conversationId, mine, (before) => {
      const rest = opinion(before).over.filter((receipt) => receipt !== over);
      return withOpinion(before, "", { over: mine === better ? [...rest, over] : rest });
    });
  }
}

export function startVotes(): void {
  onReturn(() => void outbox.flush());
  onOtherTab((name) => {
    if (name.startsWith(PREFIX)) outbox.look();
  });
  void outbox.flush();
}

function queue(conversationId: string, replyId: string, said: api.Statement[]): void {
  outbox.add(said.map((statement) => ({ key: newKey(), conversation: conversationId, reply: replyId, statement })));
  void outbox.flush();
}

/** Sorts as it was made. */
function newKey(): string {
  last = Math.max(last + 1, Date.now() * 1000);
  return `${last.toString(36).padStart(12, "0")}-${randomId()}`;
}

function refuse(entry: Entry, problem: Problem): void {
  update(entry.conversation, (now) =>
    withReply(now, entry.reply, (reply) => ({
      ...reply,
      opinions: withoutSaid(reply.opinions, entry.statement),
      refused: problem.message,
    })),
  );
}

function hold(problem: Problem): void {
  if (problem.kind === "key") keyWanted.value = true;
  else if (problem.kind === "unreachable") lost();
  clearTimeout(timer);
  // When the server is away, its return flushes; this is for what stays away by itself.
  timer = setTimeout(() => void outbox.flush(), (problem.retryAfter || RETRY) * 1000);
}
