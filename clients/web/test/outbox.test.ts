import { expect, test } from "vitest";
import { type Entry, Outbox } from "../src/chat/outbox.ts";
import { Problem } from "../src/problem.ts";

function entry(key: string): Entry {
  return { key, conversation: "c", reply: "r", statement: { receipt: "x", thumb: "up" } };
}

function make(send: (entry: Entry) => Promise<unknown>, kept: Entry[] = []) {
  const refused: string[] = [];
  const held: string[] = [];
  const keeper = {
    list: () => [...kept],
    add: (added: Entry) => kept.push(added),
    remove: (key: string) => {
      kept.splice(
        kept.findIndex((one) => one.key === key),
        1,
      );
    },
  };
  const outbox = new Outbox(
    keeper,
    send,
    (one) => refused.push(one.key),
    (problem) => held.push(problem.kind),
  );
  return { outbox, kept, refused, held };
}

test("entries are sent in order, one at a time", async () => {
  const sent: string[] = [];
  let running = 0;
  const { outbox, kept } = make(async ({ key }) => {
    expect(++running).toBe(1);
    await Promise.resolve();
    sent.push(key);
    running--;
  });
  outbox.add([entry("1"), entry("2")]);
  const first = outbox.flush();
  outbox.add([entry("3")]);
  await Promise.all([first, outbox.flush()]);
  expect(sent).toEqual(["1", "2", "3"]);
  expect(kept).toEqual([]);
  expect(outbox.waiting.value).toEqual([]);
});

test("what is added just after an empty flush is sent", async () => {
  const sent: string[] = [];
  const { outbox } = make(async ({ key }) => sent.push(key));
  void outbox.flush();
  outbox.add([entry("1")]);
  await outbox.flush();
  expect(sent).toEqual(["1"]);
});

test("a proxy whose backend is away has no say", async () => {
  const { outbox, kept, held, refused } = make(async () => {
    throw new Problem("absent", "404");
  });
  outbox.add([entry("1")]);
  await outbox.flush();
  expect([kept.length, held, refused]).toEqual([1, ["absent"], []]);
});

test("what cannot be sent now is kept, and sent before what came later", async () => {
  let away = true;
  const sent: string[] = [];
  const { outbox, kept, held, refused } = make(async ({ key }) => {
    if (away) throw new TypeError("fetch failed");
    sent.push(key);
  });
  outbox.add([entry("1")]);
  await outbox.flush();
  expect([kept.length, held, refused]).toEqual([1, ["unreachable"], []]);
  away = false;
  outbox.add([entry("2")]);
  await outbox.flush();
  expect(sent).toEqual(["1", "2"]);
});

test("what the server will never take is dropped, and said", async () => {
  const { outbox, kept, refused } = make(async ({ key }) => {
    if (key === "1") throw new Problem("refused", "the receipt has expired");
  });
  outbox.add([entry("1"), entry("2")]);
  await outbox.flush();
  expect([kept, refused]).toEqual([[], ["1"]]);
});

test("what was kept before is there again", () => {
  const { outbox } = make(async () => {}, [entry("1")]);
  expect(outbox.waiting.value.map(({ key }) => key)).toEqual(["1"]);
});
