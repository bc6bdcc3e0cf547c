// What a person chose for this browser, and who they are to the server.

import { effect, signal } from "@preact/signals";
import { load, randomId, save } from "./storage.ts";

export type Theme = "auto" | "light" | "dark";
export type Language = "en" | "zh";

function stored(name: string): string | null {
  try {
    return localStorage.getItem(`plaudit.${name}`);
  } catch {
    return null;
  }
}

const storedTheme = stored("theme"); // plain text, not JSON: theme.js reads it before any module runs
export const theme = signal<Theme>(storedTheme === "light" || storedTheme === "dark" ? storedTheme : "auto");

const storedLanguage = load<unknown>("language", null);
export const language = signal<Language>(
  storedLanguage === "en" || storedLanguage === "zh"
    ? storedLanguage
    : languageOf(globalThis.navigator?.languages ?? []),
);

/** Whether + − R and the like work without a modifier. */
export const singleKeys = signal(load("single-keys", true));

/** In sessionStorage: gone with the tab. */
export const apiKey = signal(load("key", "", () => sessionStorage));
export const adminKey = signal(load("admin-key", "", () => sessionStorage));

/** Stands for this browser in votes, so that a vote can be changed. Random: it says nothing of the person. */
export const userId = signal(load("user", ""));
if (!userId.value) userId.value = randomId();

/** The first of the browser's languages that the page speaks. */
export function languageOf(preferred: readonly string[]): Language {
  for (const tag of preferred) {
    const primary = tag.toLowerCase().split("-", 1)[0];
    if (primary === "en" || primary === "zh") return primary;
  }
  return "en";
}

export function startPreferences(): void {
  effect(() => {
    const root = document.documentElement;
    if (theme.value === "auto") delete root.dataset["theme"];
    else root.dataset["theme"] = theme.value;
    try {
      localStorage.setItem("plaudit.theme", theme.value);
    } catch {
      // then it holds for this page only
    }
  });
  effect(() => {
    document.documentElement.lang = language.value === "zh" ? "zh-Hans" : "en";
    save("language", language.value);
  });
  effect(() => void save("single-keys", singleKeys.value));
  effect(() => void save("key", apiKey.value, () => sessionStorage));
  effect(() => void save("admin-key", adminKey.value, () => sessionStorage));
  effect(() => void save("user", userId.value));
}
