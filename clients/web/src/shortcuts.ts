import { useEffect } from "preact/hooks";
import { conversation } from "./chat/conversations.ts";
import { chosenReply, streamingReply } from "./chat/model.ts";
import { pressed } from "./chat/opinions.ts";
import { regenerate, stop } from "./chat/talk.ts";
import { prefer, think } from "./chat/votes.ts";
import { singleKeys } from "./preferences.ts";
import { go, route } from "./router.ts";
import { settingsOpen } from "./Settings.tsx";

export const COMPOSER = "composer";

/** What each shortcut is, for the settings; the words are `key.NAME`. */
export const SHORTCUTS: readonly {
  name: "send" | "line" | "stop" | "new" | "focus" | "up" | "down" | "again" | "first" | "help";
  keys: string[];
  single: boolean;
}[] = [
  { name: "send", keys: ["Enter"], single: false },
  { name: "line", keys: ["Shift+Enter"], single: false },
  { name: "stop", keys: ["Esc"], single: false },
  { name: "new", keys: ["Alt+N"], single: false },
  { name: "focus", keys: ["/"], single: true },
  { name: "up", keys: ["+"], single: true },
  { name: "down", keys: ["−"], single: true },
  { name: "again", keys: ["R"], single: true },
  { name: "first", keys: ["1", "2"], single: true },
  { name: "help", keys: ["?"], single: true },
];

/** Keys that work wherever the focus is; single ones, unless somebody writes or has switched them off. */
export function useShortcuts(): void {
  useEffect(() => {
    addEventListener("keydown", handle);
    return () => removeEventListener("keydown", handle);
  }, []);
}

function handle(event: KeyboardEvent): void {
  if (event.isComposing || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  const here = route.value;
  const id = here.page === "chat" ? here.conversation : null;
  const open = id ? conversation(id) : undefined;
  if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    go({ page: "chat", conversation: null });
    return;
  }
  if (event.key === "Escape" && open && streamingReply(open)) {
    stop(open.id);
    return;
  }
  if (!singleKeys.value || event.ctrlKey || event.metaKey || event.altKey || writing(event.target)) return;
  if (event.key === "?") settingsOpen.value = true;
  else if (event.key === "/") document.getElementById(COMPOSER)?.focus();
  else if (!open || streamingReply(open)) return;
  else if (!voteOn(open.id, event.key)) return;
  event.preventDefault();
}

function voteOn(id: string, key: string): boolean {
  const turn = conversation(id)?.turns.at(-1);
  if (!turn) return false;
  const reply = chosenReply(turn);
  if (turn.comparing) {
    const better = key === "1" ? turn.comparing[0] : key === "2" ? turn.comparing[1] : null;
    if (better) prefer(id, turn.id, better);
    return better !== null;
  }
  if (key === "+" && reply) think(id, reply.id, (before) => pressed(before, "up"));
  else if (key === "-" && reply) think(id, reply.id, (before) => pressed(before, "down"));
  else if (key.toLowerCase() === "r") regenerate(id);
  else return false;
  return true;
}

function writing(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName))
  );
}
