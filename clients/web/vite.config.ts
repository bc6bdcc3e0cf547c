/// <reference types="vitest/config" />
import { defineConfig } from "vite";
import { scripted } from "./dev/scripted.ts";

// With PLAUDIT_GATEWAY=http://127.0.0.1:8080 `npm run dev` works on a real gateway; without it, on a scripted one.
const gateway = process.env["PLAUDIT_GATEWAY"];

export default defineConfig({
  plugins: gateway ? [] : [scripted()],
  build: {
    outDir: "../plaudit_gateway/page",
    emptyOutDir: true,
    assetsInlineLimit: 0, // the page's Content-Security-Policy has no data: URIs
    modulePreload: { polyfill: false },
    target: "es2022",
    license: { fileName: "licenses.txt" }, // of what is bundled; the page links to it
  },
  server: gateway ? { proxy: { "/v1": gateway, "/healthz": gateway } } : {},
  test: { include: ["test/**/*.test.ts"], environment: "node" },
});
