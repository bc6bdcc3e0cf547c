// All conversations of this browser, each kept in localStorage under a key of its own.

import { computed, signal } from "@preact/signals";
import { load, names, onOtherTab, remove, save } from "../storage.ts";
import { type Conversation, revived, streamingReply, withLastTurn } from "./model.ts";

const PREFIX = "conversation.";
const STOP = "stop.";
const FORGET = "forget.";
const SAVE_EVERY = 400; // milliseconds, while a reply streams

/** The conversations whose reply streams in this tab. Another tab's streams there, and is only shown here. */
export const running = new Map<string, AbortController>();

const all = signal<ReadonlyMap<string, Conversation>>(new Map());
const unsaved = new Set<string>();
let timer: ReturnType<typeof setTimeout> | undefined;

/** The last changed first. */
export const conversations = computed(() => [...all.value.values()].sort((a, b) => b.updated - a.updated));

export function conversation(id: string): Conversation | undefined {
  return all.value.get(id);
}

/** Change one, or make it, and keep it before long. */
export function put(changed: Conversation): void {
  all.value = new Map(all.value).set(changed.id, changed);
  unsaved.add(changed.id);
  if (!streamingReply(changed)) saveNow();
  else timer ??= setTimeout(saveNow, SAVE_EVERY);
}

export function update(id: string, change: (before: Conversation) => Conversation): void {
  const before = all.value.get(id);
  if (before) put(change(before));
}

/** Delete it, in all tabs: one in which its reply streams would keep it again. */
export function forget(id: string): void {
  save(FORGET + id, "");
  remove(FORGET + id);
  drop(id);
}

function drop(id: string): void {
  const rest = new Map(all.value);
  rest.delete(id);
  all.value = rest;
  unsaved.delete(id); // first: what ends its reply finds nothing to change
  running.get(id)?.abort();
  remove(PREFIX + id);
}

/** Stop a reply that streams in another tab. If that tab is no more, it has stopped all the same. */
export function stopElsewhere(id: string): void {
  save(STOP + id, "");
  remove(STOP + id);
  update(id, revived);
}

function saveNow(): void {
  clearTimeout(timer);
  timer = undefined;
  for (const id of unsaved) {
    const now = all.value.get(id);
    // This copy of another tab's reply is late: what was changed here is saved once that reply has ended.
    if (now && streamingReply(now) && !running.has(id)) continue;
    save(PREFIX + id, now);
    unsaved.delete(id);
  }
}

/** The page goes, and its replies with it: other tabs must not wait for them. */
function leave(): void {
  for (const [id, controller] of running) {
    update(id, revived);
    controller.abort();
  }
  saveNow();
}

function read(name: string): Conversation | null {
  const kept = load<Conversation | null>(name, null);
  return kept && Array.isArray(kept.turns) ? kept : null;
}

export function startConversations(): void {
  const kept = names(PREFIX).flatMap((name) => read(name) ?? []);
  all.value = new Map(kept.map((found) => [found.id, revived(found)]));
  addEventListener("pagehide", leave);
  onOtherTab((name) => {
    if (name.startsWith(STOP)) running.get(name.slice(STOP.length))?.abort();
    if (name.startsWith(FORGET)) drop(name.slice(FORGET.length));
    if (!name.startsWith(PREFIX)) return;
    const id = name.slice(PREFIX.length);
    if (running.has(id)) return; // this tab knows better
    const ours = all.value.get(id);
    const theirs = read(name);
    const next = new Map(all.value);
    if (!theirs) {
      next.delete(id);
      unsaved.delete(id);
    } else if (ours && unsaved.has(id)) {
      next.set(id, withLastTurn(ours, theirs));
      timer ??= setTimeout(saveNow, SAVE_EVERY);
    } else next.set(id, theirs);
    all.value = next;
  });
}
