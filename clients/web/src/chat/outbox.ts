// Votes on their way. Each is kept until the server has it, across reloads, and sent in order, under an idempotency key
// of its own: one that was sent twice (by another tab, too) counts once.

import { signal } from "@preact/signals";
import type { Statement } from "../api.ts";
import { asProblem, type Problem } from "../problem.ts";

export type Entry = { key: string; conversation: string; reply: string; statement: Statement };

/** Where entries are kept, in the order they were added. Each by itself: other tabs add and remove theirs. */
export type Keeper = { list: () => Entry[]; add: (entry: Entry) => void; remove: (key: string) => void };

export class Outbox {
  /** What waits, oldest first. */
  readonly waiting = signal<Entry[]>([]);
  private readonly keeper: Keeper;
  private readonly send: (entry: Entry) => Promise<unknown>;
  private readonly refused: (entry: Entry, problem: Problem) => void;
  private readonly held: (problem: Problem) => void;
  private sending: Promise<void> | null = null;
  private wanted = false;

  /** refused: the server will never take this one. held: nothing can be sent for now. */
  constructor(
    keeper: Keeper,
    send: (entry: Entry) => Promise<unknown>,
    refused: (entry: Entry, problem: Problem) => void,
    held: (problem: Problem) => void,
  ) {
    this.keeper = keeper;
    this.send = send;
    this.refused = refused;
    this.held = held;
    this.look();
  }

  add(entries: Entry[]): void {
    for (const entry of entries) this.keeper.add(entry);
    this.look();
  }

  /** Send what waits, until all is sent or something keeps the rest from being sent. */
  flush(): Promise<void> {
    this.wanted = true;
    this.sending ??= this.drain();
    return this.sending;
  }

  /** What is added while the last entry is on its way wants another look. */
  private async drain(): Promise<void> {
    try {
      while (this.wanted) {
        this.wanted = false;
        await this.run();
      }
    } finally {
      this.sending = null;
    }
  }

  /** Read again what is kept. */
  look(): void {
    this.waiting.value = this.keeper.list();
  }

  private async run(): Promise<void> {
    for (;;) {
      this.look();
      const entry = this.waiting.value[0];
      if (!entry) return;
      try {
        await this.send(entry);
      } catch (thrown) {
        const problem = asProblem(thrown);
        if (problem.passing) {
          this.held(problem);
          return;
        }
        this.refused(entry, problem);
      }
      this.keeper.remove(entry.key);
    }
  }
}
