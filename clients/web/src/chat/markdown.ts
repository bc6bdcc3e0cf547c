// Replies are Markdown. What they say is a stranger's: raw HTML in them is shown as text, images are links (the page
// fetches nothing from elsewhere), and what marked makes goes through DOMPurify.

import DOMPurify from "dompurify";
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import { Marked } from "marked";
import { t } from "../i18n.ts";

const LANGUAGES = { bash, c, cpp, css, diff, go, java, javascript, json, python, rust, sql, typescript, xml, yaml };
for (const [name, language] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, language);

const marked = new Marked({
  gfm: true,
  breaks: true,
  async: false,
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    code: ({ text, lang }) => {
      const name = (lang ?? "").trim().split(/\s/, 1)[0] ?? "";
      const known = name && hljs.getLanguage(name);
      const html = known ? hljs.highlight(text, { language: name, ignoreIllegals: true }).value : escaped(text);
      // tabindex: what scrolls sideways must be reachable by keyboard
      return (
        `<div class="code"><div class="code-head"><span>${escaped(name || t("code"))}</span>` +
        `<button type="button" class="copy-code">${escaped(t("copyCode"))}</button></div>` +
        `<pre tabindex="0"><code>${html}\n</code></pre></div>`
      );
    },
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A" && node.hasAttribute("href")) {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (node.tagName === "INPUT") node.setAttribute("disabled", ""); // task lists
});

/** Safe HTML of one reply. */
export function html(markdown: string): string {
  return DOMPurify.sanitize(parsed(markdown), {
    FORBID_TAGS: ["style", "img", "form", "svg", "math", "video", "audio"],
    FORBID_ATTR: ["style"],
  });
}

/** marked calls itself for each level of nesting: a reply that is nested too deep for the stack is shown as it is. */
function parsed(markdown: string): string {
  try {
    return marked.parse(markdown) as string;
  } catch {
    return `<p>${escaped(markdown).replaceAll("\n", "<br>")}</p>`;
  }
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
