// localStorage and sessionStorage, which may be forbidden or full. What cannot be kept is lost with the page, no worse.

import { signal } from "@preact/signals";

const PREFIX = "plaudit.";

/** Set once something could not be written. */
export const storageFull = signal(false);

export function load<T>(name: string, otherwise: T, storage = () => localStorage): T {
  try {
    const text = storage().getItem(PREFIX + name);
    return text === null ? otherwise : (JSON.parse(text) as T);
  } catch {
    return otherwise;
  }
}

/** Whether it is kept. */
export function save(name: string, value: unknown, storage = () => localStorage): boolean {
  try {
    storage().setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    storageFull.value = true;
    return false;
  }
}

export function remove(name: string, storage = () => localStorage): void {
  try {
    storage().removeItem(PREFIX + name);
  } catch {
    // then it was not there
  }
}

/** The names under `prefix` that something is kept under. */
export function names(prefix: string): string[] {
  try {
    return Object.keys(localStorage)
      .filter((name) => name.startsWith(PREFIX + prefix))
      .map((name) => name.slice(PREFIX.length));
  } catch {
    return [];
  }
}

/** Calls back with the name of what another tab changed. */
export function onOtherTab(changed: (name: string) => void): void {
  addEventListener("storage", (event) => {
    if (event.storageArea === localStorage && event.key?.startsWith(PREFIX)) changed(event.key.slice(PREFIX.length));
  });
}

/** 128 random bits. Not crypto.randomUUID: that is missing on a page served over plain HTTP from another machine. */
export function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** 31 random bits. */
export function randomSeed(): number {
  return (crypto.getRandomValues(new Uint32Array(1))[0] ?? 0) >>> 1;
}
