// All conversations of this browser, each kept in localStorage under a key of its own.

import { computed, signal } from "@preact/signals";
import { load, names, onOtherTab, remove, save } from "../storage.ts";
import { type Conversation, revived, streamingReply } from "./model.ts";

const PREFIX = "conversation.";
const SAVE_EVERY = 400; // milliseconds, while a reply streams

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

export function forget(id: string): void {
  const rest = new Map(all.value);
  rest.delete(id);
  all.value = rest;
  unsaved.delete(id);
  remove(PREFIX + id);
}

function saveNow(): void {
  clearTimeout(timer);
  timer = undefined;
  for (const id of unsaved) save(PREFIX + id, all.value.get(id));
  unsaved.clear();
}

function read(name: string): Conversation | null {
  const kept = load<Conversation | null>(name, null);
  return kept && Array.isArray(kept.turns) ? kept : null;
}

export function startConversations(): void {
  const kept = names(PREFIX).flatMap((name) => read(name) ?? []);
  all.value = new Map(kept.map((found) => [found.id, revived(found)]));
  addEventListener("pagehide", saveNow);
  onOtherTab((name) => {
    if (!name.startsWith(PREFIX)) return;
    const id = name.slice(PREFIX.length);
    const ours = all.value.get(id);
    if (ours && streamingReply(ours)) return; // this tab knows better
    const theirs = read(name);
    const next = new Map(all.value);
    if (theirs) next.set(id, theirs);
    else next.delete(id);
    all.value = next;
  });
}
