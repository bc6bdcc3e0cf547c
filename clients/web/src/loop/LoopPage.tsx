import { useState } from "preact/hooks";
import { keyWanted } from "../connection.ts";
import { count, named, number, percent, t, when } from "../i18n.ts";
import { settingsOpen } from "../Settings.tsx";
import { approvalOf, canary, type Loop, runningRound, STAGES, withVersions } from "./data.ts";
import { approvals, ppo, rewardModel, votes } from "./figures.ts";
import { Plot } from "./Plot.tsx";
import { Releases } from "./Releases.tsx";
import { SideBySide } from "./SideBySide.tsx";
import { Versions } from "./Versions.tsx";
import { useLoop, type Watched } from "./watch.ts";

/** How the loop goes: for operators, and for whoever wants to see it learn. */
export function LoopPage() {
  const watched = useLoop();
  const { loop } = watched;
  return (
    <section
      class="loop"
      aria-label={t("loopTitle")}
      // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable by keyboard
      tabIndex={0}
    >
      <div class="loop-inner">
        {loop ? <Content loop={withVersions(loop)} live={watched.live} /> : <Nothing {...watched} />}
      </div>
    </section>
  );
}

function Nothing({ problem }: Watched) {
  if (!problem) return <p class="loop-note">{t("loopLoading")}</p>;
  if (problem.kind === "absent") return <Note title={t("loopAbsent")} text={t("loopAbsentText")} />;
  if (problem.kind === "key") {
    return (
      <Note title={t("loopKey")} text={t("loopKeyText")}>
        <button
          type="button"
          class="button primary"
          onClick={() => {
            keyWanted.value = false;
            settingsOpen.value = true;
          }}
        >
          {t("enterKey")}
        </button>
      </Note>
    );
  }
  if (problem.kind === "unreachable") return <Note title={t("unreachable")} text={t("unreachableText")} />;
  return <Note title={t("failed")} text={problem.message} />;
}

function Note({ title, text, children }: { title: string; text: string; children?: preact.ComponentChildren }) {
  return (
    <div class="loop-note" role="status">
      <h2>{title}</h2>
      <p>{text}</p>
      {children}
    </div>
  );
}

type Whole = Loop & { serving_version: string };

function Content({ loop, live }: { loop: Whole; live: boolean }) {
  return (
    <>
      <p class={live ? "live on" : "live"}>
        <span class="live-dot" />
        {live ? t("live") : t("notLive")}
      </p>
      <Stage loop={loop} />
      <Tiles loop={loop} />
      <div class="cards">
        <Card title={t("approvalTitle")} text={t("approvalText")}>
          <Plot label={t("approvalTitle")} figure={approvals(loop)} />
        </Card>
        <Card title={t("votesTitle")} text={t("votesText")}>
          <Plot label={t("votesTitle")} figure={votes(loop)} />
        </Card>
        <Card title={t("rewardTitle")} text={t("rewardText")}>
          <Plot label={t("rewardTitle")} figure={rewardModel(loop)} />
        </Card>
        <Ppo loop={loop} />
      </div>
      <Versions loop={loop} />
      <Releases loop={loop} />
      <SideBySide loop={loop} />
    </>
  );
}

type CardProps = {
  title: string;
  text?: string;
  aside?: preact.ComponentChildren;
  wide?: boolean;
  children: preact.ComponentChildren;
};

export function Card({ title, text, aside, wide, children }: CardProps) {
  return (
    <section class={wide ? "card wide" : "card"} aria-label={title}>
      <header>
        <h2>{title}</h2>
        {aside}
      </header>
      {text && <p class="hint">{text}</p>}
      {children}
    </section>
  );
}

/** Where the learner is, step by step. */
function Stage({ loop }: { loop: Loop }) {
  const { learner } = loop;
  if (!learner) return <p class="card no-learner">{t("noLearner")}</p>;
  const round = runningRound(loop);
  const at = (STAGES as readonly string[]).indexOf(learner.stage);
  const needed = learner.votes_per_round;
  const waiting = learner.stage === "waiting" || learner.stage === "starting";
  const [done, of] = waiting ? [learner.new_votes, needed] : [round?.updates.length ?? 0, round?.updates_planned ?? 0];
  return (
    <section class="card stage" aria-label={t("learner")}>
      <header>
        <h2>
          {t("learner")}: {named("stage", learner.stage)}
        </h2>
        <span class="hint">
          {learner.stage_since && `${t("since", { time: when(new Date(learner.stage_since)) })} · `}
          {learner.time && t("lastSeen", { time: when(new Date(learner.time)) })}
        </span>
      </header>
      <ol class="stages">
        {STAGES.map((stage, index) => (
          <li
            key={stage}
            class={index === at ? "now" : index < at ? "past" : ""}
            aria-current={index === at ? "step" : undefined}
          >
            {named("stage", stage)}
          </li>
        ))}
      </ol>
      <div class="progress">
        <progress value={Math.min(done, of || 1)} max={of || 1} aria-label={t("learner")} />
        <span>
          {waiting || !round
            ? t("votesToRound", { new: count(learner.new_votes), needed: count(needed) })
            : t("roundNow", { number: round.number, done, planned: of })}
          {learner.lag > 0 && ` · ${t("behind", { count: count(learner.lag) })}`}
        </span>
      </div>
    </section>
  );
}

function Tiles({ loop }: { loop: Whole }) {
  const trial = canary(loop);
  const all = loop.learner?.approvals ?? [];
  const total = all.reduce((sum, { up, down }) => sum + up + down, 0);
  return (
    <dl class="tiles">
      <Tile name={t("serving")} value={loop.serving_version} note={approvalNote(loop, loop.serving_version)} />
      <Tile
        name={t("onTrial")}
        value={trial?.version ?? t("nothingOnTrial")}
        note={trial ? t("shareOf", { share: percent(trial.share, 1) }) : ""}
      />
      <Tile name={t("votesTotal")} value={count(total)} note="" />
    </dl>
  );
}

function approvalNote(loop: Loop, version: string): string {
  const found = approvalOf(loop, version);
  if (!found || found.up + found.down === 0) return "";
  const share = percent(found.up / (found.up + found.down));
  return `${t("approvalNow")} ${share} (${percent(found.low)} – ${percent(found.high)})`;
}

function Tile({ name, value, note }: { name: string; value: string; note: string }) {
  return (
    <div class="tile">
      <dt>{name}</dt>
      <dd>
        <strong>{value}</strong>
        {note && <span class="hint">{note}</span>}
      </dd>
    </div>
  );
}

/** Reward and KL of one round. */
function Ppo({ loop }: { loop: Loop }) {
  const rounds = loop.rounds.filter(({ updates }) => updates.length > 0);
  const [chosen, setChosen] = useState<number | null>(null);
  const round = rounds.find(({ number: of }) => of === chosen) ?? rounds.at(-1);
  const last = round?.updates.at(-1);
  return (
    <Card
      wide
      title={t("ppoTitle")}
      aside={
        rounds.length > 1 && (
          <label class="round-choice">
            {t("round")}
            <select value={round?.number} onChange={(event) => setChosen(Number(event.currentTarget.value))}>
              {rounds.map(({ number: of }) => (
                <option key={of} value={of}>
                  {of}
                </option>
              ))}
            </select>
          </label>
        )
      }
    >
      {round ? (
        <div class="halves">
          {(["reward", "kl"] as const).map((what) => (
            <div key={what}>
              <h3>
                {what === "reward" ? t("rewardAxis") : t("klAxis")}
                {last && last[what] !== null && <strong>{number(last[what], 2)}</strong>}
              </h3>
              <p class="hint">
                {what === "reward" ? t("rewardUnit") : t("klUnit")}
                {what === "kl" && round.kl_budget > 0 && ` · ${t("klBudget")}: ${number(round.kl_budget, 2)}`}
              </p>
              <Plot
                label={`${t("ppoTitle")}: ${what === "reward" ? t("rewardAxis") : t("klAxis")}`}
                figure={ppo(round, what)}
                height={230}
              />
            </div>
          ))}
        </div>
      ) : (
        <p class="no-data">{t("noData")}</p>
      )}
    </Card>
  );
}
