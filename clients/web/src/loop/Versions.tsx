import { useId, useState } from "preact/hooks";
import { step } from "../api.ts";
import { count, named, number, percent, t, when } from "../i18n.ts";
import { adminKey, apiKey } from "../preferences.ts";
import { asProblem } from "../problem.ts";
import { announce } from "../ui/announce.tsx";
import { Dialog } from "../ui/Dialog.tsx";
import { approvalOf, type Check, type Loop, type Policy, steps } from "./data.ts";
import { Card } from "./LoopPage.tsx";

type Action = { action: "promote" | "rollback"; version: string };

/** Every version: where it stands and why, what the gate looked at, and what an operator may do with it. */
export function Versions({ loop }: { loop: Loop }) {
  const [acting, setActing] = useState<Action | null>(null);
  return (
    <Card title={t("versionsTitle")}>
      <ul class="versions">
        {[...loop.policies].reverse().map((policy) => (
          <Version key={policy.version} policy={policy} loop={loop} onAct={setActing} />
        ))}
      </ul>
      {acting && <Act {...acting} onClose={() => setActing(null)} />}
    </Card>
  );
}

export function State({ state }: { state: string }) {
  return <span class={`state state-${state.replace(" ", "_")}`}>{named("state", state)}</span>;
}

type VersionProps = { policy: Policy; loop: Loop; onAct: (action: Action) => void };

function Version({ policy, loop, onAct }: VersionProps) {
  const liked = approvalOf(loop, policy.version);
  const total = liked ? liked.up + liked.down : 0;
  return (
    <li class="version-row">
      <div class="version-head">
        <strong class="version-name">{policy.version}</strong>
        <State state={policy.state} />
        {policy.share > 0 && <span class="hint">{t("shareOf", { share: percent(policy.share, 1) })}</span>}
        {liked && total > 0 && (
          <span class="hint">
            {t("approvalNow")} {percent(liked.up / total)} ({percent(liked.low)} – {percent(liked.high)}),{" "}
            {t("votesOf", { count: count(total) })}
          </span>
        )}
        <span class="version-actions">
          {steps(policy, loop.serving_version).map((action) => (
            <button
              type="button"
              key={action}
              class="button small"
              aria-label={`${t(action)}: ${policy.version}`}
              onClick={() => onAct({ action, version: policy.version })}
            >
              {t(action)}
            </button>
          ))}
        </span>
      </div>
      <p class="version-why">
        {policy.reason}
        {policy.changed_at && <span class="hint"> · {when(new Date(policy.changed_at))}</span>}
      </p>
      {policy.checks.length > 0 && <Checks checks={policy.checks} />}
    </li>
  );
}

function Checks({ checks }: { checks: Check[] }) {
  const shown = (value: number | null) => (value === null ? "–" : number(value, 3));
  return (
    <details class="figures">
      <summary>{t("checks")}</summary>
      <ul class="checks">
        {checks.map(({ measure, candidate, bound, upper, kept }) => (
          <li key={measure} class={kept ? "kept" : "broken"}>
            <span>{measure}</span>
            <span>{shown(candidate)}</span>
            <span class="hint">{t(upper ? "atMost" : "atLeast", { bound: shown(bound) })}</span>
            <span>{kept ? t("checkKept") : t("checkBroken")}</span>
          </li>
        ))}
      </ul>
    </details>
  );
}

/** Asks once more, and for the reason; the key is asked for beside it. */
function Act({ action, version, onClose }: Action & { onClose: () => void }) {
  const [reason, setReason] = useState("");
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const reasonId = useId();
  const keyId = useId();
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setProblem("");
    try {
      await step({ action, version, reason }, adminKey.value || apiKey.value);
      announce(t("stepDone"));
      onClose();
    } catch (thrown) {
      setProblem(asProblem(thrown).message);
      setBusy(false);
    }
  };
  return (
    <Dialog title={t(action === "promote" ? "promoteTitle" : "rollbackTitle", { version })} onClose={onClose}>
      <form class="act" onSubmit={(event) => void submit(event)}>
        <p>{t(action === "promote" ? "promoteText" : "rollbackText")}</p>
        <div class="field">
          <label for={reasonId}>{t("reason")}</label>
          <input
            id={reasonId}
            type="text"
            maxLength={300}
            value={reason}
            placeholder={t("reasonHint")}
            onInput={(event) => setReason(event.currentTarget.value)}
          />
        </div>
        <div class="field">
          <label for={keyId}>{t("adminKey")}</label>
          <input
            id={keyId}
            type="password"
            autocomplete="off"
            value={adminKey.value}
            onChange={(event) => {
              adminKey.value = event.currentTarget.value.trim();
            }}
          />
          <p class="hint">{t("adminKeyHint")}</p>
        </div>
        {problem && (
          <p class="problem" role="alert">
            {problem}
          </p>
        )}
        <div class="dialog-actions">
          <button type="button" class="button" onClick={onClose}>
            {t("cancel")}
          </button>
          <button type="submit" class={action === "promote" ? "button primary" : "button danger"} disabled={busy}>
            {t(action)}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
