// A made-up loop for the scripted gateway. Its figures mean nothing.

import type { Loop, Policy, Round } from "../src/loop/data.ts";

const ago = (minutes: number) => new Date(Date.now() - minutes * 60_000).toISOString();

function round(number: number, reward: number, ended: boolean): Round {
  const count = ended ? 12 : 5;
  return {
    number,
    started_at: ago(180 - number * 40),
    ended_at: ended ? ago(150 - number * 40) : null,
    parent: `v${number - 1}`,
    reference: "v0",
    votes: 40 * number,
    heads: [
      {
        aspect: "quality",
        auc: 0.66 + 0.05 * number,
        accuracy: 0.6 + 0.04 * number,
        ece: 0.09,
        judgements: 60 * number,
      },
      { aspect: "relevance", auc: 0.6 + 0.04 * number, accuracy: 0.58 + 0.03 * number, ece: null, judgements: 30 },
    ],
    updates: Array.from({ length: count }, (_, index) => ({
      number: index + 1,
      reward: reward * (1 - Math.exp(-index / 4)) + 0.04 * Math.sin(index * 2),
      kl: 0.11 * index + 0.02 * Math.cos(index),
      entropy: 1.6,
    })),
    updates_planned: 12,
    kl_budget: 1.2,
    version: ended ? `v${number}` : "",
    outcome: ended ? "stable" : "",
    reason: ended ? "surely better than its parent" : "",
  };
}

function policy(version: string, parent: string, state: string, reason: string, share = 0): Policy {
  return {
    version,
    parent,
    state,
    reason,
    changed_at: version === "v0" ? null : ago(60),
    metrics: {},
    checks:
      version === "v0"
        ? []
        : [
            { measure: "reward", candidate: 0.41, reference: 0, bound: 0.05, upper: false, kept: true },
            { measure: "kl", candidate: 0.92, reference: 0, bound: 1.5, upper: true, kept: true },
            {
              measure: "shorter",
              candidate: 0.12,
              reference: 0.1,
              bound: 0.3,
              upper: true,
              kept: state !== "rejected",
            },
          ],
    reference: "v0",
    share,
  };
}

export function loop(): Loop {
  const step = (
    policy_version: string,
    state: string,
    reason: string,
    minutes: number,
    share = 0,
    actor = "learner",
  ) => ({
    policy_version,
    parent: "v0",
    state,
    reason,
    actor,
    time: ago(minutes),
    share,
  });
  return {
    learner: {
      time: ago(0),
      stage: "improving",
      stage_since: ago(6),
      lag: 0,
      new_votes: 12,
      votes_per_round: 40,
      approvals: [
        { policy_version: "v0", up: 41, down: 59, low: 0.32, high: 0.51 },
        { policy_version: "v1", up: 97, down: 73, low: 0.5, high: 0.64 },
        { policy_version: "v3", up: 38, down: 17, low: 0.56, high: 0.79 },
      ],
      buckets: Array.from({ length: 48 }, (_, index) => ({
        start: ago(240 - index * 5),
        seconds: 300,
        policy_version: index < 20 ? "v0" : index < 36 ? "v1" : "v3",
        up: Math.round(4 + 3 * Math.sin(index / 3) + index / 8),
        down: Math.round(4 + 2 * Math.cos(index / 4) - index / 16),
      })),
    },
    rounds: [round(1, 0.3, true), round(2, 0.5, true), round(3, 0.6, false)],
    releases: [
      step("v1", "candidate", "made from 120 votes", 150),
      step("v1", "canary", "passed the gate: on trial", 149, 0.5),
      step("v1", "stable", "better than v0 in 64 votes (e-value 24)", 120),
      step("v2", "rejected", "not surely better than v1: reward +0.07, lower bound −0.02", 80),
      step("v3", "canary", "passed the gate: on trial", 40, 0.5),
      step("v3", "stable", "looks good to me", 20, 0, "operator"),
    ],
    policies: [
      policy("v0", "", "retired", "the base model"),
      policy("v1", "v0", "retired", "better than v0 in 64 votes (e-value 24)"),
      policy("v2", "v1", "rejected", "not surely better than v1: reward +0.07, lower bound −0.02"),
      policy("v3", "v1", "stable", "looks good to me"),
    ],
    serving_version: "v3",
  };
}
