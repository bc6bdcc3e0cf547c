// One polite live region for the whole page. A screen reader hears that a reply begins, and the reply once it is whole:
// never each token.

import { effect, signal, untracked } from "@preact/signals";
import { spoken } from "../chat/talk.ts";
import { onReturn } from "../connection.ts";
import { t } from "../i18n.ts";

const announced = signal("");
const LONGEST = 4000;

export function announce(text: string): void {
  // The same words again are said again: a region whose text does not change stays silent.
  announced.value = announced.peek() === text ? `${text}\u00a0` : text;
}

export function startAnnouncing(): void {
  effect(() => {
    const now = spoken.value;
    if (!now) return;
    untracked(() => {
      if (now.what === "replying") announce(t("replying"));
      if (now.what === "reply") announce(now.text.slice(0, LONGEST));
      if (now.what === "stopped") announce(t("stopped"));
      if (now.what === "failed") announce(now.text || t("brokeOff"));
    });
  });
  onReturn(() => announce(t("back")));
}

export function LiveRegion() {
  return (
    <div role="status" aria-live="polite" class="visually-hidden">
      {announced}
    </div>
  );
}
