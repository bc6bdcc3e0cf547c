// Server-sent events out of a fetch response: EventSource can send no Authorization header.

import { createParser } from "eventsource-parser";

/** The data of each event, as it arrives. Comments (keep-alives) are passed over. Ends with the body, or throws what
 * reading it throws. Leaving the loop cancels the body. */
export async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const ready: string[] = [];
  const parser = createParser({ onEvent: (event) => ready.push(event.data) });
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      parser.feed(done ? decoder.decode() : decoder.decode(value, { stream: true }));
      yield* ready.splice(0);
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
