// Whether the server answers. Once it does not, it is asked again and again, ever more seldom, until it does.

import { signal } from "@preact/signals";
import { healthy } from "./api.ts";

const LONGEST_WAIT = 15_000;

export const reachable = signal(true);
/** The server asks for a key, or for another one. */
export const keyWanted = signal(false);

const returned: (() => void)[] = [];
let timer: ReturnType<typeof setTimeout> | undefined;
let wait = 1000;

/** Calls back whenever the server is there again. */
export function onReturn(callback: () => void): void {
  returned.push(callback);
}

/** Something could not reach the server. */
export function lost(): void {
  if (!reachable.value) return;
  reachable.value = false;
  wait = 1000;
  later();
}

/** Something did reach it. */
export function found(): void {
  if (reachable.value) return;
  clearTimeout(timer);
  reachable.value = true;
  for (const callback of returned) callback();
}

/** Ask now instead of waiting for the next time. */
export async function tryNow(): Promise<void> {
  clearTimeout(timer);
  if (await healthy()) found();
  else if (!reachable.value) later();
}

function later(): void {
  clearTimeout(timer);
  timer = setTimeout(() => void tryNow(), wait);
  wait = Math.min(wait * 2, LONGEST_WAIT);
}

if (typeof addEventListener === "function") addEventListener("online", () => void tryNow());
