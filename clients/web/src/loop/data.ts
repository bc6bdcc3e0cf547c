// The loop as GET /v1/loop tells it: loop.proto and policy.proto in snake_case. Times are RFC 3339, NaN is null.

export type Approval = { policy_version: string; up: number; down: number; low: number; high: number };
export type VoteBucket = { start: string; seconds: number; policy_version: string; up: number; down: number };

export type Learner = {
  time: string | null;
  stage: string;
  stage_since: string | null;
  lag: number;
  new_votes: number;
  votes_per_round: number;
  approvals: Approval[];
  buckets: VoteBucket[];
};

export type Head = {
  aspect: string;
  auc: number | null;
  accuracy: number | null;
  ece: number | null;
  judgements: number;
};

export type Update = { number: number; reward: number | null; kl: number | null; entropy: number | null };

export type Round = {
  number: number;
  started_at: string | null;
  ended_at: string | null;
  parent: string;
  reference: string;
  votes: number;
  heads: Head[];
  updates: Update[];
  updates_planned: number;
  kl_budget: number;
  version: string;
  outcome: string;
  reason: string;
};

export type Release = {
  policy_version: string;
  parent: string;
  state: string;
  reason: string;
  actor: string;
  time: string | null;
  share: number;
};

export type Check = {
  measure: string;
  candidate: number | null;
  reference: number | null;
  bound: number | null;
  upper: boolean;
  kept: boolean;
};

export type Policy = {
  version: string;
  parent: string;
  state: string;
  reason: string;
  changed_at: string | null;
  metrics: Record<string, number | null>;
  checks: Check[];
  reference: string;
  share: number;
};

export type Loop = {
  learner: Learner | null;
  rounds: Round[];
  releases: Release[];
  /** Empty if this caller may not list them. */
  policies: Policy[];
  /** Null if this caller may not know. */
  serving_version: string | null;
};

export const STAGES = ["waiting", "rewarding", "improving", "gating", "publishing"] as const;

/** The loop with all that its steps say of the versions, for whoever may observe, but not list them. */
export function withVersions(loop: Loop): Loop & { serving_version: string } {
  const promoted = loop.releases.filter(({ policy_version, state }, index) => {
    const last = loop.releases.findLastIndex((step) => step.policy_version === policy_version);
    return last === index && state === "stable";
  });
  const serving = loop.serving_version ?? promoted.at(-1)?.policy_version ?? "v0";
  if (loop.policies.length > 0) return { ...loop, serving_version: serving };
  const last = new Map(loop.releases.map((step) => [step.policy_version, step]));
  const policies = [...last.values()].map((step) => ({
    version: step.policy_version,
    parent: step.parent,
    state: step.state === "stable" && step.policy_version !== serving ? "retired" : step.state,
    reason: step.reason,
    changed_at: step.time,
    metrics: {},
    checks: [],
    reference: "",
    share: step.share,
  }));
  return { ...loop, policies, serving_version: serving };
}

export function approvalOf(loop: Loop, version: string): Approval | undefined {
  return loop.learner?.approvals.find(({ policy_version }) => policy_version === version);
}

/** The round that runs now. */
export function runningRound(loop: Loop): Round | undefined {
  const last = loop.rounds.at(-1);
  return last && !last.ended_at ? last : undefined;
}

export function canary(loop: Loop): Policy | undefined {
  return loop.policies.find(({ state }) => state === "canary");
}

/** What an operator may do with a version; the server has the last word. */
export function steps(policy: Policy, serving: string | null): ("promote" | "rollback")[] {
  const out: ("promote" | "rollback")[] = [];
  if (policy.state !== "rejected" && policy.version !== serving) out.push("promote");
  if (policy.version !== "v0" && (policy.state === "stable" || policy.state === "canary")) out.push("rollback");
  return out;
}

export type Slot = { start: Date; up: number; down: number };
const MOST_SLOTS = 400;

/** Votes on all versions by time, the times without votes included. */
export function slots(buckets: VoteBucket[]): Slot[] {
  const first = buckets[0];
  if (!first) return [];
  const span = first.seconds * 1000;
  const starts = buckets.map(({ start }) => Date.parse(start));
  const begin = Math.min(...starts);
  const count = Math.round((Math.max(...starts) - begin) / span) + 1;
  const every = Math.ceil(count / MOST_SLOTS);
  const out = Array.from({ length: Math.ceil(count / every) }, (_, index) => ({
    start: new Date(begin + index * every * span),
    up: 0,
    down: 0,
  }));
  for (const [index, bucket] of buckets.entries()) {
    const slot = out[Math.floor(Math.round(((starts[index] ?? begin) - begin) / span) / every)];
    if (!slot) continue;
    slot.up += bucket.up;
    slot.down += bucket.down;
  }
  return out;
}
