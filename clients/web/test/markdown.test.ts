import { expect, test, vi } from "vitest";

// DOMPurify needs a browser; what it does is tested in one (tests/web).
vi.mock("dompurify", () => ({ default: { addHook: () => {}, sanitize: (html: string) => html } }));

test("a reply that is nested too deep is shown as it is", async () => {
  const { html } = await import("../src/chat/markdown.ts");
  expect(html("> Hi")).toContain("<blockquote>");
  const deep = "> ".repeat(5000);
  expect(html(`${deep}<b>\nend`)).toBe(`<p>${deep.replaceAll(">", "&#62;")}&#60;b&#62;<br>end</p>`);
});
