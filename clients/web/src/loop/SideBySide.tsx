import { useEffect, useId, useRef, useState } from "preact/hooks";
import * as api from "../api.ts";
import { html } from "../chat/markdown.ts";
import { t } from "../i18n.ts";
import { adminKey, apiKey, userId } from "../preferences.ts";
import { asProblem } from "../problem.ts";
import { randomId, randomSeed } from "../storage.ts";
import type { Loop } from "./data.ts";
import { Card } from "./LoopPage.tsx";

type Answer = { version: string; text: string; problem: string; done: boolean };

/** The same prompt to two versions, unrecorded. */
export function SideBySide({ loop }: { loop: Loop }) {
  const [versions, setVersions] = useState<string[]>([]);
  const [chosen, setChosen] = useState<[string, string] | null>(null);
  const [prompt, setPrompt] = useState("");
  const [answers, setAnswers] = useState<Answer[]>([]);
  const running = useRef<AbortController | null>(null);
  const promptId = useId();
  // What is loaded changes as versions come and go.
  const known = loop.policies.map(({ version, state }) => `${version} ${state}`).join();
  useEffect(() => {
    api.versions(apiKey.value || adminKey.value).then(setVersions, () => {});
  }, [known, apiKey.value, adminKey.value]);
  useEffect(() => () => running.current?.abort(), []);
  const [left, right] = chosen ?? [versions[0] ?? "v0", versions.at(-1) ?? "v0"];
  const streaming = answers.some(({ done }) => !done);
  const set = (index: number, change: (before: Answer) => Answer) =>
    setAnswers((before) => before.map((answer, at) => (at === index ? change(answer) : answer)));
  const ask = async (index: number, version: string, seed: number, signal: AbortSignal) => {
    const request = {
      model: version,
      messages: [{ role: "user" as const, content: prompt.trim() }],
      user: userId.value,
      conversation_id: randomId(),
      seed,
      unrecorded: true,
    };
    try {
      for await (const event of api.chat(request, apiKey.value || adminKey.value, signal)) {
        if (event.type === "text") set(index, (answer) => ({ ...answer, text: answer.text + event.text }));
      }
    } catch (thrown) {
      if (signal.aborted) return;
      set(index, (answer) => ({ ...answer, problem: asProblem(thrown).message || t("brokeOff") }));
    } finally {
      set(index, (answer) => ({ ...answer, done: true }));
    }
  };
  const run = (event: Event) => {
    event.preventDefault();
    if (!prompt.trim() || streaming) return;
    const controller = new AbortController();
    running.current = controller;
    const asked = [left, right];
    const seed = randomSeed(); // the same for both: only the versions differ
    setAnswers(asked.map((version) => ({ version, text: "", problem: "", done: false })));
    asked.forEach((version, index) => void ask(index, version, seed, controller.signal));
  };
  return (
    <Card title={t("sideTitle")} text={`${t("sideText")} ${t("sideLoaded")}`}>
      <form class="side-form" onSubmit={run}>
        <div class="field">
          <label for={promptId}>{t("sidePrompt")}</label>
          <input
            id={promptId}
            type="text"
            value={prompt}
            placeholder={t("try.1")}
            onInput={(event) => setPrompt(event.currentTarget.value)}
          />
        </div>
        <Pick label={t("left")} versions={versions} value={left} onChange={(version) => setChosen([version, right])} />
        <Pick label={t("right")} versions={versions} value={right} onChange={(version) => setChosen([left, version])} />
        <button type="submit" class="button primary" disabled={!prompt.trim() || streaming}>
          {t("sideRun")}
        </button>
      </form>
      {answers.length > 0 && (
        <div class="pair">
          {answers.map((answer, index) => (
            <div class="candidate" key={index}>
              <h3>
                <span class="version">{answer.version}</span>
              </h3>
              <div
                class={answer.done ? "markdown" : "markdown streaming"}
                dangerouslySetInnerHTML={{ __html: html(answer.text) }}
              />
              {answer.problem && <p class="problem">{answer.problem}</p>}
            </div>
          ))}
        </div>
      )}
    </Card>
  );
}

type PickProps = { label: string; versions: string[]; value: string; onChange: (version: string) => void };

function Pick({ label, versions, value, onChange }: PickProps) {
  const id = useId();
  return (
    <div class="field pick">
      <label for={id}>{label}</label>
      <select id={id} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
        {(versions.includes(value) ? versions : [value, ...versions]).map((version) => (
          <option key={version}>{version}</option>
        ))}
      </select>
    </div>
  );
}
