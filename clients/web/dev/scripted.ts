// A gateway that answers from a script, for work on the page without a model: `npm run dev`.

import type { IncomingMessage, ServerResponse } from "node:http";
import type { Plugin } from "vite";
import { loop } from "./loop.ts";

const REPLIES = [
  "Sunlight is made of all colours. Air scatters **blue** light far more than red: the shorter the wave, the more.\n\n" +
    "So when you look away from the sun, what reaches you is mostly blue.",
  'Here is a small one:\n\n```python\ndef greet(name: str) -> str:\n    """Say hello."""\n    return f"Hello, {name}!"\n' +
    "```\n\n1. It takes a name\n2. and returns `str`.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
];

export function scripted(): Plugin {
  let asked = 0;
  return {
    name: "scripted-gateway",
    apply: "serve",
    configureServer(server) {
      server.middlewares.use((request, response, next) => {
        const path = (request.url ?? "").split("?", 1)[0];
        if (path === "/healthz") json(response, { status: "ok" });
        else if (path === "/v1/page") json(response, { aspects: ["quality", "relevance", "politeness"], loop: true });
        else if (path === "/v1/feedback") void body(request).then(() => json(response, { durability: "event_log" }));
        else if (path === "/v1/chat/completions") {
          void body(request).then((sent) => {
            const model = String(sent["model"]);
            void chat(response, asked++, model === "plaudit" ? "v3" : model);
          });
        } else if (path === "/v1/loop/events") {
          response.writeHead(200, { "Content-Type": "text/event-stream" });
          response.write(`data: ${JSON.stringify(loop())}\n\n`);
        } else if (path?.startsWith("/v1/policies/")) {
          response.statusCode = 403;
          json(response, { error: { message: "this needs the permission admin" } });
        } else next();
      });
    },
  };
}

async function chat(response: ServerResponse, number: number, version: string): Promise<void> {
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  const say = (chunk: object) =>
    response.write(`data: ${JSON.stringify({ id: `r${number}`, model: version, ...chunk })}\n\n`);
  say({
    plaudit: { receipt: `receipt-${number}`, policy_version: version },
    choices: [{ delta: { role: "assistant" } }],
  });
  for (const piece of (REPLIES[number % REPLIES.length] ?? "").match(/\s*\S+/g) ?? []) {
    await new Promise((resolve) => setTimeout(resolve, 40));
    if (response.destroyed) return;
    say({ choices: [{ delta: { content: piece } }] });
  }
  say({ choices: [{ delta: {}, finish_reason: "stop" }] });
  response.end("data: [DONE]\n\n");
}

async function body(request: IncomingMessage): Promise<Record<string, unknown>> {
  let text = "";
  for await (const piece of request) text += String(piece);
  return JSON.parse(text || "{}") as Record<string, unknown>;
}

function json(response: ServerResponse, content: object): void {
  response.setHeader("Content-Type", "application/json");
  response.end(JSON.stringify(content));
}
