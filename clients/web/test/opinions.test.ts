import { expect, test } from "vitest";
import {
  aspectPressed,
  NO_OPINIONS,
  type Opinions,
  pressed,
  statements,
  withOpinion,
  withoutSaid,
} from "../src/chat/opinions.ts";

const R = "receipt";

/** What stands at the server after these statements: feedback.proto's rules, in small. */
function standing(before: Opinions, said: ReturnType<typeof statements>): Opinions {
  let now = before;
  for (const { aspect = "", thumb, comment, preferred_over, retract } of said) {
    const over = now[aspect]?.over ?? [];
    if (retract) now = { ...now, [aspect]: { thumb: null, comment: "", over: [] } };
    if (thumb) now = withOpinion(now, aspect, { thumb });
    if (comment) now = withOpinion(now, aspect, { comment });
    if (preferred_over) now = withOpinion(now, aspect, { over: [...over, preferred_over] });
  }
  return now;
}

test("a thumb is one statement, and so is the other one", () => {
  const up = pressed(NO_OPINIONS, "up");
  expect(statements(R, NO_OPINIONS, up)).toEqual([{ receipt: R, thumb: "up" }]);
  expect(statements(R, up, pressed(up, "down"))).toEqual([{ receipt: R, thumb: "down" }]);
});

test("the same thumb again takes it back, with what explained it", () => {
  let now = pressed(NO_OPINIONS, "down");
  now = aspectPressed(now, "relevance");
  now = withOpinion(now, "", { comment: "too long" });
  const back = pressed(now, "down");
  expect(statements(R, now, back)).toEqual([
    { receipt: R, retract: true },
    { receipt: R, aspect: "relevance", retract: true },
  ]);
});

test("a preference survives when the thumb beside it is taken back", () => {
  const liked = withOpinion(pressed(NO_OPINIONS, "up"), "", { over: ["other"] });
  expect(statements(R, liked, pressed(liked, "up"))).toEqual([
    { receipt: R, retract: true },
    { receipt: R, preferred_over: "other" },
  ]);
});

test("what the server does not take goes, and the rest stands", () => {
  let now = withOpinion(pressed(NO_OPINIONS, "up"), "", { over: ["other"] });
  const before = now;
  now = withOpinion(now, "", { comment: "\u001b" });
  expect(withoutSaid(now, { receipt: R, comment: "\u001b" })).toEqual(before);
  const chip = aspectPressed(before, "unknown");
  expect(withoutSaid(chip, { receipt: R, aspect: "unknown", thumb: "up" })).toEqual({
    ...before,
    unknown: { thumb: null, comment: "", over: [] },
  });
  expect(withoutSaid(before, { receipt: R, preferred_over: "other" })[""]?.over).toEqual([]);
  expect(withoutSaid(before, { receipt: R, thumb: "down" }), "changed meanwhile").toEqual(before);
});

test("nothing changed, nothing said", () => {
  const up = pressed(NO_OPINIONS, "up");
  expect(statements(R, up, up)).toEqual([]);
  expect(statements(R, NO_OPINIONS, { "": { thumb: null, comment: "", over: [] } })).toEqual([]);
});

test("from any state to any other, the server ends up where the page is", () => {
  const thumbs = [null, "up", "down"] as const;
  const states: Opinions[] = thumbs.flatMap((thumb) =>
    ["", "a", "b"].flatMap((comment) =>
      [[], ["x"]].flatMap((over) =>
        thumbs.map((aspect) => ({
          "": { thumb, comment, over },
          relevance: { thumb: aspect, comment: "", over: [] },
        })),
      ),
    ),
  );
  for (const before of states) {
    for (const after of states) expect(standing(before, statements(R, before, after))).toEqual(after);
  }
});
