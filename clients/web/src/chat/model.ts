// What a conversation is, and how it changes: pure functions of immutable values.
//
// A turn is what the person said and the replies to it, one or more; `chosen` is the one that the conversation goes on
// with. While two replies wait to be compared, `comparing` names them.

import type { Message } from "../api.ts";
import type { Kind } from "../problem.ts";
import { NO_OPINIONS, type Opinions } from "./opinions.ts";

export type Reply = {
  /** The page's own name of it; the server's `response_id` stands in no vote. */
  id: string;
  text: string;
  /** Empty until the server said it. */
  version: string;
  /** Empty: there is nothing to vote with. */
  receipt: string;
  state: "streaming" | "done" | "stopped" | "failed";
  /** "length": it was cut at the server's limit. */
  finish: string;
  problem: { kind: Kind; message: string } | null;
  opinions: Opinions;
  /** Why the server refused a vote on it for good. */
  refused: string;
};

export type Turn = {
  id: string;
  user: string;
  replies: Reply[];
  chosen: string;
  comparing: [string, string] | null;
  /** The reply that was said to be the better one; empty: none was. */
  preferred: string;
};

export type Conversation = {
  id: string;
  title: string;
  turns: Turn[];
  draft: string;
  /** Unix time in milliseconds. */
  updated: number;
};

const TITLE_LENGTH = 60;

export function newConversation(id: string, now: number): Conversation {
  return { id, title: "", turns: [], draft: "", updated: now };
}

export function newReply(id: string): Reply {
  return {
    id,
    text: "",
    version: "",
    receipt: "",
    state: "streaming",
    finish: "",
    problem: null,
    opinions: NO_OPINIONS,
    refused: "",
  };
}

export function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0] ?? "";
  const characters = Array.from(line);
  return characters.length <= TITLE_LENGTH ? line : `${characters.slice(0, TITLE_LENGTH).join("").trimEnd()}…`;
}

/** The person says something; `reply` is to answer it. */
export function say(conversation: Conversation, turnId: string, text: string, reply: Reply, now: number): Conversation {
  const turn: Turn = { id: turnId, user: text, replies: [reply], chosen: reply.id, comparing: null, preferred: "" };
  return {
    ...conversation,
    title: conversation.title || titleOf(text),
    turns: [...conversation.turns.map(settled), turn],
    draft: "",
    updated: now,
  };
}

/**
 * Another reply to the last turn. One that failed before it said anything is replaced; one that broke off stays in
 * sight, but half a reply is no fair comparison; any other is compared with.
 */
export function again(conversation: Conversation, reply: Reply, now: number): Conversation {
  const last = conversation.turns.at(-1);
  if (!last) return conversation;
  const before = last.replies.find(({ id }) => id === last.chosen);
  const replaced = before?.state === "failed" && before.text === "";
  const turn: Turn = {
    ...last,
    replies: [...(replaced ? last.replies.filter(({ id }) => id !== before.id) : last.replies), reply],
    chosen: reply.id,
    comparing: before && before.state !== "failed" ? [before.id, reply.id] : null,
    preferred: "",
  };
  return { ...conversation, turns: [...conversation.turns.slice(0, -1), turn], updated: now };
}

/** Take back the last turn, to be said in other words. */
export function unsay(conversation: Conversation): Conversation {
  const last = conversation.turns.at(-1);
  return last ? { ...conversation, turns: conversation.turns.slice(0, -1), draft: last.user } : conversation;
}

export function withReply(conversation: Conversation, replyId: string, change: (reply: Reply) => Reply): Conversation {
  return {
    ...conversation,
    turns: conversation.turns.map((turn) =>
      turn.replies.some(({ id }) => id === replyId)
        ? { ...turn, replies: turn.replies.map((reply) => (reply.id === replyId ? change(reply) : reply)) }
        : turn,
    ),
  };
}

export function withTurn(conversation: Conversation, turnId: string, change: (turn: Turn) => Turn): Conversation {
  return { ...conversation, turns: conversation.turns.map((turn) => (turn.id === turnId ? change(turn) : turn)) };
}

/** Ends a comparison; `better` is what the conversation goes on with, `said` whether the person said that it is better. */
export function decided(turn: Turn, better: string, said: boolean): Turn {
  return { ...turn, chosen: better, comparing: null, preferred: said ? better : "" };
}

/** What was changed here while the last turn's reply came in another tab, with that turn as it is there. */
export function withLastTurn(ours: Conversation, theirs: Conversation): Conversation {
  const last = theirs.turns.at(-1);
  if (!last || ours.turns.at(-1)?.id !== last.id) return { ...theirs, draft: ours.draft };
  return { ...theirs, draft: ours.draft, turns: [...ours.turns.slice(0, -1), last] };
}

function settled(turn: Turn): Turn {
  return turn.comparing ? { ...turn, comparing: null } : turn;
}

export function chosenReply(turn: Turn): Reply | undefined {
  return turn.replies.find(({ id }) => id === turn.chosen);
}

export function replyOf(conversation: Conversation, replyId: string): Reply | undefined {
  return conversation.turns.flatMap(({ replies }) => replies).find(({ id }) => id === replyId);
}

export function streamingReply(conversation: Conversation): Reply | undefined {
  return conversation.turns.at(-1)?.replies.find(({ state }) => state === "streaming");
}

/** What the model is to answer: everything up to the last turn's question. A turn without a reply is left out. */
export function messages(conversation: Conversation): Message[] {
  const out: Message[] = [];
  for (const [index, turn] of conversation.turns.entries()) {
    const last = index === conversation.turns.length - 1;
    const reply = chosenReply(turn)?.text ?? "";
    if (!last && !reply.trim()) continue;
    out.push({ role: "user", content: turn.user });
    if (!last) out.push({ role: "assistant", content: reply });
  }
  return out;
}

/** A conversation as it was kept: what still streamed then was cut off. */
export function revived(conversation: Conversation): Conversation {
  return {
    ...conversation,
    turns: conversation.turns.map((turn) => ({
      ...turn,
      replies: turn.replies.map((reply) =>
        reply.state !== "streaming" ? reply : { ...reply, state: reply.text ? "stopped" : "failed" },
      ),
    })),
  };
}
