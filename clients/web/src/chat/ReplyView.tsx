import { useMemo } from "preact/hooks";
import { t } from "../i18n.ts";
import { language } from "../preferences.ts";
import { html } from "./markdown.ts";
import type { Reply } from "./model.ts";
import { edit, regenerate } from "./talk.ts";

export function ReplyText({ reply }: { reply: Reply }) {
  const words = language.value; // the code blocks' buttons are in it
  const text = useMemo(() => ({ __html: html(reply.text) }), [reply.text, words]);
  if (!reply.text && reply.state === "streaming") {
    return (
      <p class="thinking">
        <span class="visually-hidden">{t("replying")}</span>
        <span class="dot" />
        <span class="dot" />
        <span class="dot" />
      </p>
    );
  }
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: the buttons in it are real ones
    // biome-ignore lint/a11y/useKeyWithClickEvents: and a key on one of them clicks it
    <div
      class={reply.state === "streaming" ? "markdown streaming" : "markdown"}
      onClick={copyCode}
      dangerouslySetInnerHTML={text}
    />
  );
}

function copyCode(event: MouseEvent): void {
  const button = event.target instanceof Element ? event.target.closest<HTMLButtonElement>(".copy-code") : null;
  const code = button?.closest(".code")?.querySelector("code")?.textContent;
  if (!button || code == null) return;
  void navigator.clipboard?.writeText(code).then(() => {
    button.textContent = t("copied");
    setTimeout(() => {
      button.textContent = t("copyCode");
    }, 1500);
  });
}

/** Which policy version sampled the reply. */
export function Version({ reply }: { reply: Reply }) {
  if (!reply.version) return null;
  return (
    <span class="version" title={t("versionTitle", { version: reply.version })}>
      {reply.version}
    </span>
  );
}

/** Why the reply is not whole, and what can be done about it. */
export function ReplyProblem({ conversation, reply, last }: { conversation: string; reply: Reply; last: boolean }) {
  if (reply.state === "stopped") return <p class="aside">{t("stopped")}</p>;
  if (reply.state === "done" && !reply.text.trim()) return <p class="aside">{t("empty")}</p>;
  if (reply.state === "done" && reply.finish === "length") return <p class="aside">{t("cut")}</p>;
  if (reply.state !== "failed") return null;
  const { kind, message } = reply.problem ?? { kind: "unreachable", message: "" };
  const words = {
    unreachable: reply.text ? t("brokeOff") : t("unreachable"),
    busy: t("busy"),
    key: t("keyWanted"),
    failed: t("failed"),
    absent: t("refused"),
    refused: t("refused"),
  }[kind];
  return (
    <div class="problem">
      <p>
        <strong>{words}</strong> {kind === "unreachable" || kind === "busy" ? "" : message}
      </p>
      {last && (
        <p class="problem-actions">
          <button type="button" class="button small" onClick={() => regenerate(conversation)}>
            {t("retry")}
          </button>
          <button type="button" class="button small plain" onClick={() => edit(conversation)}>
            {t("edit")}
          </button>
        </p>
      )}
    </div>
  );
}
