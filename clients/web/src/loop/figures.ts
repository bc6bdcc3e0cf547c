// What each chart shows of the loop.

import type { ChartConfiguration, ChartDataset } from "chart.js";
import { count, named, number, percent, t, when } from "../i18n.ts";
import { type Loop, type Round, slots } from "./data.ts";
import type { Figure } from "./Plot.tsx";

const none = "–";
const orNone = (value: number | null, digits = 3) => (value === null ? none : number(value, digits));

/** The interval as a thin bar, what was counted as a point on it. */
export function approvals(loop: Loop): Figure {
  const shown = (loop.learner?.approvals ?? []).filter(({ up, down }) => up + down > 0);
  const share = shown.map(({ up, down }) => up / (up + down));
  return {
    head: [t("version"), t("approval"), t("interval"), t("up"), t("down")],
    rows: shown.map(({ policy_version, low, high, up, down }, index) => [
      policy_version,
      percent(share[index] ?? 0, 1),
      `${percent(low, 1)} – ${percent(high, 1)}`,
      count(up),
      count(down),
    ]),
    config: (colours) =>
      ({
        type: "bar",
        data: {
          labels: shown.map(({ policy_version }) => policy_version),
          datasets: [
            {
              type: "line",
              label: t("approval"),
              data: share,
              showLine: false,
              pointRadius: 6,
              pointHoverRadius: 7,
              pointBackgroundColor: colours.accent,
              pointBorderWidth: 0,
            },
            {
              type: "bar",
              label: t("interval"),
              data: shown.map(({ low, high }) => [low, high]),
              barThickness: 8,
              borderRadius: 4,
              borderSkipped: false,
              backgroundColor: faded(colours.accent, 0.28),
            },
          ] as ChartDataset[],
        },
        options: {
          scales: {
            x: { grid: { display: false } },
            y: { min: 0, max: 1, ticks: { stepSize: 0.25, callback: (value) => percent(Number(value)) } },
          },
          interaction: { mode: "index", intersect: false },
          plugins: {
            legend: { display: false },
            tooltip: {
              callbacks: {
                label: (item) => {
                  const one = shown[item.dataIndex];
                  if (!one) return "";
                  if (item.datasetIndex === 0) return `${t("approval")}: ${percent(share[item.dataIndex] ?? 0, 1)}`;
                  return `${t("interval")}: ${percent(one.low, 1)} – ${percent(one.high, 1)}`;
                },
                footer: ([item]) => {
                  const one = shown[item?.dataIndex ?? -1];
                  return one ? `${t("votes")}: ${count(one.up + one.down)}` : "";
                },
              },
            },
          },
        },
      }) as ChartConfiguration,
  };
}

/** Thumbs up above the line, thumbs down below it. */
export function votes(loop: Loop): Figure {
  const shown = slots(loop.learner?.buckets ?? []);
  return {
    head: [t("when"), t("up"), t("down")],
    rows: shown.map(({ start, up, down }) => [when(start), count(up), count(down)]),
    config: (colours) => ({
      type: "bar",
      data: {
        labels: shown.map(({ start }) => when(start)),
        datasets: [
          {
            label: t("up"),
            data: shown.map(({ up }) => up),
            backgroundColor: colours.accent,
            borderRadius: 2,
            maxBarThickness: 32,
          },
          {
            label: t("down"),
            data: shown.map(({ down }) => -down),
            backgroundColor: colours.bad,
            borderRadius: 2,
            maxBarThickness: 32,
          },
        ],
      },
      options: {
        scales: {
          x: { stacked: true, grid: { display: false }, ticks: { maxRotation: 0, autoSkipPadding: 24 } },
          y: { stacked: true, ticks: { precision: 0, callback: (value) => count(Math.abs(Number(value))) } },
        },
        interaction: { mode: "index", intersect: false },
        plugins: {
          legend: legend(),
          tooltip: { callbacks: { label: (item) => `${item.dataset.label}: ${count(Math.abs(Number(item.raw)))}` } },
        },
      },
    }),
  };
}

/** AUC by round, each aspect a line; accuracy dashed in the same colour. */
export function rewardModel(loop: Loop): Figure {
  const rounds = loop.rounds.filter(({ heads }) => heads.length > 0);
  const aspects = [...new Set(rounds.flatMap(({ heads }) => heads.map(({ aspect }) => aspect)))];
  const of = (round: Round, aspect: string) => round.heads.find((head) => head.aspect === aspect);
  return {
    head: [t("round"), t("aspect"), t("auc"), t("accuracy"), t("ece"), t("judgements")],
    rows: rounds.flatMap(({ number: round, heads }) =>
      heads.map(({ aspect, auc, accuracy, ece, judgements }) => [
        String(round),
        named("aspect", aspect),
        orNone(auc),
        orNone(accuracy),
        orNone(ece),
        count(judgements),
      ]),
    ),
    config: (colours) => ({
      type: "line",
      data: {
        labels: rounds.map(({ number: round }) => String(round)),
        datasets: aspects.flatMap((aspect, index) => {
          const colour = colours.series[index % colours.series.length] ?? colours.accent;
          return [
            line(
              `${named("aspect", aspect)}: ${t("auc")}`,
              rounds.map((round) => of(round, aspect)?.auc ?? null),
              colour,
            ),
            {
              ...line(
                `${named("aspect", aspect)}: ${t("accuracy")}`,
                rounds.map((round) => of(round, aspect)?.accuracy ?? null),
                colour,
              ),
              borderDash: [4, 4],
              pointStyle: "rectRot" as const,
            },
          ];
        }),
      },
      options: {
        scales: {
          x: { title: { display: true, text: t("round") }, grid: { display: false } },
          y: { suggestedMin: 0.4, max: 1 },
        },
        interaction: { mode: "index", intersect: false },
        plugins: { legend: legend() },
      },
    }),
  };
}

/** Reward or KL of one round, update by update; KL with its budget. */
export function ppo(round: Round | undefined, what: "reward" | "kl"): Figure {
  const updates = round?.updates ?? [];
  const title = what === "reward" ? t("rewardAxis") : t("klAxis");
  return {
    head: [t("update"), title],
    rows: updates.map((update) => [String(update.number), orNone(update[what])]),
    config: (colours) => {
      const colour = (what === "reward" ? colours.series[0] : colours.series[1]) ?? colours.accent;
      const budget = {
        ...line(
          t("klBudget"),
          updates.map(() => round?.kl_budget ?? null),
          colours.soft,
        ),
      };
      return {
        type: "line",
        data: {
          labels: updates.map((update) => String(update.number)),
          datasets: [
            line(
              title,
              updates.map((update) => update[what]),
              colour,
            ),
            ...(what === "kl" && round && round.kl_budget > 0
              ? [{ ...budget, borderDash: [6, 4], pointRadius: 0, borderWidth: 1.5 }]
              : []),
          ],
        },
        options: {
          scales: {
            x: { title: { display: true, text: t("update") }, grid: { display: false } },
            y: { beginAtZero: what === "kl" },
          },
          interaction: { mode: "index", intersect: false },
          plugins: { legend: { display: false } },
        },
      };
    },
  };
}

function line(label: string, data: (number | null)[], colour: string) {
  return {
    label,
    data,
    borderColor: colour,
    backgroundColor: colour,
    borderWidth: 2,
    pointRadius: data.length > 30 ? 0 : 3,
    spanGaps: true,
  };
}

function legend() {
  return { position: "bottom" as const, labels: { usePointStyle: true, boxHeight: 6, padding: 16 } };
}

function faded(colour: string, alpha: number): string {
  return `color-mix(in srgb, ${colour} ${Math.round(alpha * 100)}%, transparent)`;
}
