// The loop, live: a stream of server-sent events that is opened again whenever it ends.

import { useEffect, useState } from "preact/hooks";
import { watchLoop } from "../api.ts";
import { adminKey, apiKey } from "../preferences.ts";
import { asProblem, type Kind, type Problem } from "../problem.ts";
import type { Loop } from "./data.ts";

const LONGEST_WAIT = 15_000;

export type Watched = { loop: Loop | null; live: boolean; problem: Problem | null };

/** These do not pass by themselves. */
const FINAL: Kind[] = ["absent", "key", "refused"];

export function useLoop(): Watched {
  const [watched, setWatched] = useState<Watched>({ loop: null, live: false, problem: null });
  const key = adminKey.value || apiKey.value;
  useEffect(() => {
    const controller = new AbortController();
    void watch(key, controller.signal, (change) => setWatched((before) => ({ ...before, ...change })));
    return () => controller.abort();
  }, [key]);
  return watched;
}

async function watch(key: string, signal: AbortSignal, set: (change: Partial<Watched>) => void): Promise<void> {
  let wait = 1000;
  while (!signal.aborted) {
    try {
      for await (const loop of watchLoop(key, signal)) {
        wait = 1000;
        set({ loop, live: true, problem: null });
      }
    } catch (thrown) {
      if (signal.aborted) return;
      const problem = asProblem(thrown);
      set({ live: false, problem });
      if (FINAL.includes(problem.kind)) return;
    }
    if (signal.aborted) return;
    set({ live: false });
    const now = wait;
    await new Promise((resolve) => setTimeout(resolve, now));
    wait = Math.min(wait * 2, LONGEST_WAIT);
  }
}
