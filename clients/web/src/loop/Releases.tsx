import { useState } from "preact/hooks";
import { count, named, percent, t, when } from "../i18n.ts";
import type { Loop } from "./data.ts";
import { Card } from "./LoopPage.tsx";
import { State } from "./Versions.tsx";

const FIRST = 12;

/** Every step of every version, and why. */
export function Releases({ loop }: { loop: Loop }) {
  const [all, setAll] = useState(false);
  const steps = [...loop.releases].reverse();
  const shown = all ? steps : steps.slice(0, FIRST);
  return (
    <Card title={t("releasesTitle")} text={t("releasesText")}>
      {steps.length === 0 ? (
        <p class="no-data">{t("noReleases")}</p>
      ) : (
        <ol class="releases">
          {shown.map((step, index) => (
            <li key={`${step.policy_version} ${step.time} ${steps.length - index}`}>
              <span class="release-when">{step.time ? when(new Date(step.time)) : ""}</span>
              <span class="release-what">
                <strong class="version-name">{step.policy_version}</strong> <State state={step.state} />
                {step.share > 0 && <span class="hint"> {t("shareOf", { share: percent(step.share, 1) })}</span>}
              </span>
              <span class="release-why">
                {step.reason}
                <span class="hint"> · {named("actor", step.actor)}</span>
              </span>
            </li>
          ))}
        </ol>
      )}
      {!all && steps.length > FIRST && (
        <button type="button" class="button small plain" onClick={() => setAll(true)}>
          {t("all", { count: count(steps.length) })}
        </button>
      )}
    </Card>
  );
}
