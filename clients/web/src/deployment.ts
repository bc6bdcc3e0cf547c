// What the page has to know of the deployment that it is served by.

import { effect, signal } from "@preact/signals";
import * as api from "./api.ts";
import { onReturn } from "./connection.ts";
import { apiKey } from "./preferences.ts";

/** The aspects that replies are voted on, the one that a vote means when it names none first. */
export const aspects = signal<string[]>([]);
/** Whether the gateway shows the loop; true until it is known. */
export const hasLoop = signal(true);

async function ask(key: string): Promise<void> {
  try {
    const page = await api.page(key);
    aspects.value = page.aspects;
    hasLoop.value = page.loop;
  } catch {
    // The page works without; it is asked again when the server is back.
  }
}

export function startDeployment(): void {
  effect(() => void ask(apiKey.value));
  onReturn(() => void ask(apiKey.value));
}
