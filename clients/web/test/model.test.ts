import { expect, test } from "vitest";
import {
  again,
  type Conversation,
  decided,
  messages,
  newConversation,
  newReply,
  type Reply,
  revived,
  say,
  titleOf,
  unsay,
  withReply,
  withTurn,
} from "../src/chat/model.ts";

function done(conversation: Conversation, id: string, text: string): Conversation {
  return withReply(conversation, id, (reply: Reply) => ({ ...reply, text, state: "done" }));
}

const begun = () => done(say(newConversation("c", 0), "t1", "Hello", newReply("a"), 1), "a", "Hi!");

test("the model is told what was said, with the replies that were chosen", () => {
  let now = begun();
  now = done(again(now, newReply("b"), 2), "b", "Good day!");
  expect(now.turns[0]?.comparing).toEqual(["a", "b"]);
  now = withTurn(now, "t1", (turn) => decided(turn, "a", true));
  now = say(now, "t2", "More", newReply("d"), 3);
  expect(messages(now)).toEqual([
    { role: "user", content: "Hello" },
    { role: "assistant", content: "Hi!" },
    { role: "user", content: "More" },
  ]);
});

test("another reply answers the same question", () => {
  const now = again(begun(), newReply("b"), 2);
  expect(messages(now)).toEqual([{ role: "user", content: "Hello" }]);
});

test("a reply that failed is replaced, not compared with", () => {
  const failed = withReply(begun(), "a", (reply) => ({ ...reply, text: "", state: "failed" }));
  const turn = again(failed, newReply("b"), 2).turns[0];
  expect([turn?.replies.map(({ id }) => id), turn?.chosen, turn?.comparing]).toEqual([["b"], "b", null]);
});

test("a reply that broke off stays in sight, and is not compared with", () => {
  const half = withReply(begun(), "a", (reply) => ({ ...reply, text: "Hi", state: "failed" }));
  const turn = again(half, newReply("b"), 2).turns[0];
  expect([turn?.replies.map(({ id }) => id), turn?.chosen, turn?.comparing]).toEqual([["a", "b"], "b", null]);
});

test("a turn without a reply is not told", () => {
  const failed = withReply(begun(), "a", (reply) => ({ ...reply, text: "", state: "failed" }));
  expect(messages(say(failed, "t2", "Again", newReply("b"), 2))).toEqual([{ role: "user", content: "Again" }]);
});

test("going on without a choice ends the comparison", () => {
  const compared = done(again(begun(), newReply("b"), 2), "b", "Good day!");
  const next = say(compared, "t2", "More", newReply("d"), 3);
  expect(next.turns[0]).toMatchObject({ comparing: null, chosen: "b", preferred: "" });
});

test("words that are taken back are a draft again", () => {
  expect(unsay(begun())).toMatchObject({ turns: [], draft: "Hello" });
});

test("what streamed when the page was left was cut off", () => {
  const half = withReply(say(newConversation("c", 0), "t", "Hello", newReply("a"), 1), "a", (reply) => ({
    ...reply,
    text: "Hi",
  }));
  expect(revived(half).turns[0]?.replies[0]?.state).toBe("stopped");
  expect(revived(say(newConversation("c", 0), "t", "Hello", newReply("a"), 1)).turns[0]?.replies[0]?.state).toBe(
    "failed",
  );
});

test("a title is the first line, not too long, and whole characters", () => {
  expect(titleOf("  One\ntwo")).toBe("One");
  expect(titleOf("🐦".repeat(80))).toBe(`${"🐦".repeat(60)}…`);
});
