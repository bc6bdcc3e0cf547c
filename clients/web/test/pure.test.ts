import { expect, test } from "vitest";
import { loop } from "../dev/loop.ts";
import { fill } from "../src/i18n.ts";
import { canary, type Loop, type Policy, runningRound, slots, steps } from "../src/loop/data.ts";
import { languageOf } from "../src/preferences.ts";
import { hashOf, routeOf } from "../src/router.ts";
import { en } from "../src/words/en.ts";
import { zh } from "../src/words/zh.ts";

test("both languages name the same values", () => {
  const values = (text: string) => [...text.matchAll(/\{\w+\}/g)].map(([value]) => value).sort();
  for (const [key, words] of Object.entries(en)) expect(values(zh[key as keyof typeof en]), key).toEqual(values(words));
});

test("values are filled in", () => {
  expect(fill("{a} of {b}, {c}", { a: 1, b: "two" })).toBe("1 of two, {c}");
});

test("the first language that the page speaks", () => {
  expect(languageOf(["zh-TW", "en"])).toBe("zh");
  expect(languageOf(["fr", "en-GB", "zh"])).toBe("en");
  expect(languageOf(["fr"])).toBe("en");
});

test("a route is its fragment, and back", () => {
  for (const hash of ["#/", "#/loop", "#/c/0af3"]) expect(hashOf(routeOf(hash))).toBe(hash);
  expect(routeOf("#/c/../x")).toEqual({ page: "chat", conversation: null });
});

test("votes over time have no holes", () => {
  const at = (minute: number, policy_version: string, up: number, down: number) => ({
    start: new Date(Date.UTC(2026, 0, 1, 0, minute)).toISOString(),
    seconds: 300,
    policy_version,
    up,
    down,
  });
  const found = slots([at(0, "v0", 1, 2), at(15, "v0", 3, 0), at(15, "v1", 1, 1)]);
  expect(found.map(({ up, down }) => [up, down])).toEqual([
    [1, 2],
    [0, 0],
    [0, 0],
    [4, 1],
  ]);
  expect(slots([])).toEqual([]);
  const long = slots([at(0, "v0", 1, 0), at(5 * 10_000, "v0", 1, 1)]);
  expect(long.length).toBeLessThanOrEqual(400);
  expect(long.reduce((sum, { up, down }) => sum + up + down, 0)).toBe(3);
});

test("an operator is offered what the server would take", () => {
  const of = (version: string, state: string) => steps({ version, state } as Policy, "v3");
  expect(of("v0", "retired")).toEqual(["promote"]);
  expect(of("v3", "stable")).toEqual(["rollback"]);
  expect(of("v4", "canary")).toEqual(["promote", "rollback"]);
  expect(of("v2", "rejected")).toEqual([]);
  expect(of("v1", "rolled back")).toEqual(["promote"]);
  expect(steps({ version: "v0", state: "stable" } as Policy, "v0")).toEqual([]);
});

test("the round that runs, and the version on trial", () => {
  const made: Loop = loop();
  expect(runningRound(made)?.number).toBe(3);
  expect(canary(made)).toBeUndefined();
});
