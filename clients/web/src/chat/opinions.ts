// What a person thinks of one reply, and the statements that take the server from one state of it to the next.
//
// The API knows statements, and retractions of everything said of one reply and aspect (feedback.proto). The page knows
// what is to stand. `statements` is the bridge: a change is said, and what is to go is retracted, with all else that
// stood there said again.

import type { Statement } from "../api.ts";

export type Thumb = "up" | "down";

/** What stands of one reply and aspect. */
export type Opinion = { thumb: Thumb | null; comment: string; over: string[] };

/** By aspect; "" is the deployment's first, that of an unnamed aspect. */
export type Opinions = Readonly<Record<string, Opinion>>;

export const NO_OPINIONS: Opinions = {};
const NOTHING: Opinion = { thumb: null, comment: "", over: [] };

export function opinion(opinions: Opinions, aspect = ""): Opinion {
  return opinions[aspect] ?? NOTHING;
}

export function withOpinion(opinions: Opinions, aspect: string, change: Partial<Opinion>): Opinions {
  return { ...opinions, [aspect]: { ...opinion(opinions, aspect), ...change } };
}

/** A thumb was pressed: it is given, or changed (what was said of single aspects then goes), or, if it was given
 * before, taken back, with what explained it. */
export function pressed(opinions: Opinions, thumb: Thumb): Opinions {
  const before = opinion(opinions);
  const takenBack = before.thumb === thumb;
  return {
    "": { ...before, thumb: takenBack ? null : thumb, comment: takenBack ? "" : before.comment },
  };
}

/** The same thumb for a single aspect, or none. */
export function aspectPressed(opinions: Opinions, aspect: string): Opinions {
  const thumb = opinion(opinions).thumb;
  return withOpinion(opinions, aspect, { thumb: opinion(opinions, aspect).thumb ? null : thumb });
}

/** Without what the server did not take; what it had taken before stands there still. */
export function withoutSaid(opinions: Opinions, { aspect = "", thumb, comment, preferred_over }: Statement): Opinions {
  const now = opinion(opinions, aspect);
  return withOpinion(opinions, aspect, {
    thumb: thumb && now.thumb === thumb ? null : now.thumb,
    comment: comment && now.comment === comment ? "" : now.comment,
    over: now.over.filter((other) => other !== preferred_over),
  });
}

/** What has to be said, in order, for `after` to stand where `before` stood. */
export function statements(receipt: string, before: Opinions, after: Opinions): Statement[] {
  const aspects = [...new Set([...Object.keys(before), ...Object.keys(after)])].sort();
  return aspects.flatMap((aspect) => {
    const common = aspect ? { receipt, aspect } : { receipt };
    const was = opinion(before, aspect);
    const is = opinion(after, aspect);
    const gone =
      (was.thumb && !is.thumb) || (was.comment && !is.comment) || was.over.some((other) => !is.over.includes(other));
    const had = gone ? NOTHING : was;
    const said: Statement[] = gone ? [{ ...common, retract: true }] : [];
    if (is.thumb && is.thumb !== had.thumb) said.push({ ...common, thumb: is.thumb });
    if (is.comment && is.comment !== had.comment) said.push({ ...common, comment: is.comment });
    for (const other of is.over) if (!had.over.includes(other)) said.push({ ...common, preferred_over: other });
    return said;
  });
}
